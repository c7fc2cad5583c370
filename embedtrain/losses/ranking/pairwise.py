"""The frame of list losses that compare two candidates at a time: RankNet, LambdaLoss."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.ranking.lists import ListLoss, Lists


class PairwiseListLoss(ListLoss):
    """sum over candidates i above j of  weight(i, j) * log(1 + e^((s_j - s_i) / temperature)).

    temperature  divides the similarity
    pairs        mean: over all such pairs of the batch (public code); sum: of a query's pairs, then the mean over
                 queries (papers), so that long lists count more
    """

    def __init__(self, *, temperature: float, pairs: Literal["mean", "sum"]):
        super().__init__(over="query")
        if temperature <= 0:
            raise ConfigError(f"loss.temperature: expected a number above 0, got {temperature}. Common: 0.1.")
        if pairs not in ("mean", "sum"):
            raise ConfigError(f"loss.pairs: expected mean or sum, got {pairs!r}.")
        self.temperature = temperature
        self.pairs = pairs

    def per_list(self, lists: Lists) -> Tensor:
        logits = lists.similarity / self.temperature
        wrong = F.softplus(logits[:, None, :] - logits[:, :, None])
        return (wrong * self.weight(lists)).masked_fill(~self.compared(lists), 0.0).sum((1, 2))

    def compared(self, lists: Lists) -> Tensor:
        """Which (i, j), i above j, [L, C, C] bool."""
        return lists.above()

    @abstractmethod
    def weight(self, lists: Lists) -> Tensor | float:
        """Of each (i, j), [L, C, C], without gradient."""

    def divisor(self, lists: Lists) -> Tensor | float:
        return self.compared(lists).sum().clamp(min=1) if self.pairs == "mean" else super().divisor(lists)
