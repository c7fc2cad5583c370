"""RankKL: similarities as a distribution, against one made from the ranks of the scores."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.ranking.lists import ListLoss, Lists


class RankKL(ListLoss):
    """KL divergence from the softmax of the similarities to a softmax of the places that the scores give.

        KL( softmax(r / t) || softmax(s / t) ),  r = (n - 1 - place) / (n - 1)  in 0 .. 1, best first

    places count from 0, equal scores share the mean of theirs, as in Spearman's correlation. CoDiEmb (arXiv:2508.11442):
    weight 5 beside 2 * Pearson and 0.5 * PRO, over all pairs of the batch. ListNet takes scores where this takes ranks.
    Cost: D similarities and a sort; memory linear in the batch.

    temperature       t, divides similarities and ranks alike
    over              batch: all pairs of all ranks are one list (CoDiEmb, for STS); query: the candidates of each query,
                      and the mean over queries
    divide_by_length  true: as CoDiEmb's code, whose `batchmean` of one list divides by n, and to which its weight 5
                      belongs; false: the divergence itself, as its paper has it
    """

    def __init__(
        self,
        *,
        temperature: float = 0.05,
        over: Literal["query", "batch"] = "batch",
        divide_by_length: bool = True,
    ):
        super().__init__(over=over)
        if temperature <= 0:
            raise ConfigError(f"loss.temperature: expected a number above 0, got {temperature}. Common: 0.05.")
        self.temperature = temperature
        self.divide_by_length = divide_by_length

    def per_list(self, lists: Lists) -> Tensor:
        rank = (lists.length[:, None] - 1 - places(lists)) / (lists.length[:, None] - 1)
        target = lists.log_softmax(rank / self.temperature)
        student = lists.log_softmax(lists.similarity / self.temperature)
        divergence = lists.fill(target.exp() * (target - student), 0.0).sum(1)
        return divergence / lists.length if self.divide_by_length else divergence


def places(lists: Lists) -> Tensor:
    """Place of each candidate by score, from 0 for the highest; equal scores share the mean of theirs, [L, C]."""
    ascending = lists.fill(lists.score, math.inf).sort(dim=1).values
    below = torch.searchsorted(ascending, lists.score)
    up_to = torch.searchsorted(ascending, lists.score, right=True)
    return lists.length[:, None] - 0.5 * (below + up_to + 1).to(lists.score)
