"""Position-weighted mean pooling (SGPT, arXiv:2202.08904, section 3.1): for causal decoders, later tokens know more."""

from __future__ import annotations

from torch import Tensor, nn

from embedtrain.pooling.segments import pooled_tokens, segment_sum
from embedtrain.types import RaggedTokens


class WeightedMeanPooling(nn.Module):
    """sum_i w_i h_i / sum_i w_i with w_i = i, counted from 1 at the text's first token.

    Positions count from the start of the text also where an instruction is left out of the span, as
    sentence-transformers' `weightedmean` does; its weights then begin above 1.
    """

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        flat, text = pooled_tokens(tokens)
        weights = (flat - tokens.offsets[text] + 1).float()
        total = weights.new_zeros(len(tokens)).index_add(0, text, weights)
        return segment_sum(hidden, tokens, weights / total[text])
