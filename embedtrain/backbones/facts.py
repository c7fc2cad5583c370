"""What a pooling head may be told of its backbone and tokenizer."""

from __future__ import annotations

import string
from typing import Any

from transformers import PreTrainedTokenizerBase

from embedtrain.backbones.bridge import BridgeBackbone
from embedtrain.backbones.routing import num_routes
from embedtrain.backbones.transformer import TransformerBackbone


def head_facts(backbone: TransformerBackbone | BridgeBackbone, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """By the name of a head's parameter."""
    return {
        "hidden_size": backbone.hidden_size,
        "num_layers": backbone.config.num_hidden_layers,
        "vocab_size": getattr(backbone, "vocab_size", backbone.config.vocab_size),
        "num_routes": num_routes(backbone.hf_model),
        "special_ids": tuple(sorted(tokenizer.all_special_ids)),
        "punctuation_ids": punctuation_ids(tokenizer),
    }


def punctuation_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that are one character of ASCII punctuation, as ColBERT's code looks them up."""
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[character] for character in string.punctuation if character in vocabulary)
