"""First-last pooling: the mean over tokens of the average of the first and the last layer (WhiteningBERT)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from embedtrain.pooling.segments import segment_sum, span_lengths
from embedtrain.types import RaggedTokens


class FirstLastPooling(nn.Module):
    """mean over tokens of (h_1 + h_L) / 2, with h_1 the output of the first transformer layer (arXiv:2104.01767).

    SimCSE's code calls something else by this name: it averages the last layer with the embedding layer h_0.
    """

    needs_layers = True

    def forward(self, hidden: Sequence[Tensor], tokens: RaggedTokens) -> Tensor:
        """`hidden`: states [S, H] of the embedding, then of layers 1 .. L."""
        both = (hidden[1].float() + hidden[-1].float()) / 2
        return segment_sum(both, tokens) / span_lengths(tokens, both.device)
