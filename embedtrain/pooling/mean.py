"""Mean pooling: the average of a text's hidden states."""

from __future__ import annotations

from torch import Tensor, nn

from embedtrain.pooling.segments import segment_sum, span_lengths
from embedtrain.types import RaggedTokens


class MeanPooling(nn.Module):
    """The average over the pooled tokens. Instruction tokens left out of the spans still shape the states they leave."""

    reads_spans = True

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        return segment_sum(hidden, tokens) / span_lengths(tokens, hidden.device)
