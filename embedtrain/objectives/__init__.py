"""Objectives on token states, for stages before contrast or beside it: what `embedtrain.types.TokenObjective` describes.

masked_lm.py       predict hidden tokens                        mntp.py            the same from one place before, for decoders
causal_lm.py       predict each token from those before it
retromae.py        rebuild a text from its embedding by a weak decoder; the bag of words of DupMAE
smae.py            masked words and rebuilt texts at several layers and sizes: Starbucks
reconstruction.py  rebuild the other side of a pair from an embedding, by the language model itself
translation.py     rebuild the other side of a pair from the token states of this one
bridge_alignment.py  write a text from the encoder's states through a bridge: LUSIFER

texts.py      which texts of a batch take part, and their seeds       masking.py     which tokens are hidden
words.py      the predicted tokens of ragged texts, padded            decoder.py     attention blocks of the decoders
prediction.py cross-entropy over the vocabulary in little memory      reading.py     what is read off an encoder
"""

from embedtrain.objectives.bridge_alignment import BridgeAlignment
from embedtrain.objectives.causal_lm import CausalLanguageModel
from embedtrain.objectives.masked_lm import MaskedLanguageModel
from embedtrain.objectives.mntp import MaskedNextToken
from embedtrain.objectives.reconstruction import BidirectionalReconstruction
from embedtrain.objectives.retromae import RetroMAE
from embedtrain.objectives.smae import StarbucksMAE
from embedtrain.objectives.translation import RepresentationTranslation

__all__ = [
    "BidirectionalReconstruction",
    "BridgeAlignment",
    "CausalLanguageModel",
    "MaskedLanguageModel",
    "MaskedNextToken",
    "RepresentationTranslation",
    "RetroMAE",
    "StarbucksMAE",
]
