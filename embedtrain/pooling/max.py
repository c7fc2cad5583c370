"""Max pooling: the largest value of each hidden dimension over a text's tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedtrain.pooling.segments import pooled_tokens
from embedtrain.types import RaggedTokens


class MaxPooling(nn.Module):
    """The maximum over the pooled tokens, dimension by dimension. Ties share the gradient evenly."""

    reads_spans = True

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        flat, text = (index.to(hidden.device, non_blocking=True) for index in pooled_tokens(tokens))
        states = hidden[flat].float()
        lowest = torch.full((len(tokens.spans), states.shape[1]), float("-inf"), device=hidden.device)
        return lowest.scatter_reduce(0, text[:, None].expand_as(states), states, "amax")
