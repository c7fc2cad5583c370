"""Another layer than the last, or the average of several (WhiteningBERT, arXiv:2104.01767), then any head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.types import Embeddings, RaggedTokens


class LayerAveragePooling(nn.Module):
    """pooling((h_a + h_b + ...) / number of layers), with h_l the states of layer l as the model gives them out.

    One layer is a tap: in decoders the middle ones often know more of a text's meaning than the last, which prepares the
    next word. Inner layers of models with a final norm come without it.

    layers        0 is the embedding, 1 the first layer; negative numbers count from the end, -1 is the last
    pooling       a head without weights, such as mean
    num_layers    of the backbone; supplied by the program.
    """

    needs_layers = True

    def __init__(self, *, layers: Sequence[int], pooling: nn.Module, num_layers: int) -> None:
        super().__init__()
        wrong = [layer for layer in layers if not -num_layers - 1 <= layer <= num_layers]
        if wrong or not layers:
            raise ConfigError(
                f"pooling.layers: expected numbers from 0 (the embedding) to {num_layers} (the last layer), or from -1 (the "
                f"last) down to {-num_layers - 1}, got {list(layers)}."
            )
        self.layers = tuple(layers)
        self.pooling = pooling
        self.reads_last_token = getattr(pooling, "reads_last_token", False)

    def forward(self, hidden: Sequence[Tensor], tokens: RaggedTokens) -> Tensor | Embeddings:
        """`hidden`: states [S, H] of the embedding, then of layers 1 .. L."""
        return self.pooling(torch.stack([hidden[layer].float() for layer in self.layers]).mean(0), tokens)
