"""Pearson: similarities must correlate with scores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from embedtrain.losses.ranking.lists import ListLoss, Lists

SMALLEST_SPREAD = 1e-6  # of similarities; below it they are equal but for rounding, and have no direction to improve in


class Pearson(ListLoss):
    """1 - Pearson's correlation of similarities and scores.

        1 - sum of (s - mean s)(y - mean y) / (|s - mean s| |y - mean y|)

    CoDiEmb (arXiv:2508.11442): weight 2 beside 5 * RankKL and 0.5 * PRO, over all pairs of the batch. It wants the spacing
    of the scores, where CoSENT and RankNet want their order alone; and it has no temperature.
    Cost: D similarities; memory linear in the batch.

    over  batch: all pairs of all ranks are one list (CoDiEmb, for STS); query: the candidates of each query, and the mean
          over queries
    """

    def __init__(self, *, over: Literal["query", "batch"] = "batch"):
        super().__init__(over=over)

    def per_list(self, lists: Lists) -> Tensor:
        similarity, score = _centred(lists, lists.similarity), _centred(lists, lists.score)
        spread = similarity.square().mean(1)
        some = spread > SMALLEST_SPREAD**2
        norm = torch.where(some, similarity.square().sum(1), 1.0).sqrt() * score.square().sum(1).sqrt()
        return 1 - torch.where(some, (similarity * score).sum(1) / norm, 0.0)


def _centred(lists: Lists, values: Tensor) -> Tensor:
    mean = values.sum(1, keepdim=True) / lists.length[:, None]
    return lists.fill(values - mean, 0.0)
