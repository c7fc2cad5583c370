"""LambdaLoss: RankNet whose pairs weigh what their order is worth in NDCG."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.ranking.lists import Lists
from embedtrain.losses.ranking.pairwise import PairwiseListLoss
from embedtrain.types import EmbeddingBatch

WEIGHTINGS = ("lambda_rank", "ndcg_loss2", "ndcg_loss2++")
LARGEST_GRADE = 60  # far above any; 2^60 is finite in fp32


class LambdaLoss(PairwiseListLoss):
    """Puts the candidates of each query in the order of their scores, and the upper places first.

        sum over i, j with score(i) > score(j) of  w(i, j) * log2(1 + e^((s_j - s_i) / t))
        gain G = (2^score - 1) / best DCG,  discount D(r) = log2(1 + r),  r the place by similarity, from 1
        lambda_rank    w = |1/D(r_i) - 1/D(r_j)| * |G_i - G_j|
        ndcg_loss2     w = |1/D(|r_i - r_j|) - 1/D(|r_i - r_j| + 1)| * |G_i - G_j|
        ndcg_loss2++   w = lambda_rank + mu * ndcg_loss2

    Wang et al. 2018 (CIKM, doi 10.1145/3269206.3271784). RankNet is this with w = 1. Scores are relevance grades, at
    least 0; no gradient flows through places and weights.
    Cost: D similarities, and C x C numbers for a query with C candidates.

    weighting    lambda_rank | ndcg_loss2 | ndcg_loss2++ (the paper's best)
    mu           of ndcg_loss2++; 10 in the paper
    top_k        pairs count only if one of the two is among the first k, and so does the best DCG; null = all
    temperature  divides the similarity: 1 / sigma of the paper
    pairs        mean: over all compared pairs of the batch (sentence-transformers); sum: over those of a query, then the
                 mean over queries (paper)
    """

    def __init__(
        self,
        *,
        weighting: Literal["lambda_rank", "ndcg_loss2", "ndcg_loss2++"] = "ndcg_loss2++",
        mu: float = 10.0,
        top_k: int | None = None,
        temperature: float = 0.1,
        pairs: Literal["mean", "sum"] = "sum",
    ):
        super().__init__(temperature=temperature, pairs=pairs)
        if weighting not in WEIGHTINGS:
            raise ConfigError(f"loss.weighting: expected one of {', '.join(WEIGHTINGS)}, got {weighting!r}.")
        if mu < 0:
            raise ConfigError(f"loss.mu: expected a number >= 0, got {mu}.")
        if top_k is not None and top_k < 1:
            raise ConfigError(f"loss.top_k: expected at least 1, or null for all places, got {top_k}.")
        self.weighting = weighting
        self.mu = mu
        self.top_k = top_k

    def compared(self, lists: Lists) -> Tensor:
        if self.top_k is None:
            return lists.above()
        top = _place(lists) <= self.top_k
        return lists.above() & (top[:, :, None] | top[:, None, :])

    def weight(self, lists: Lists) -> Tensor:
        place = _place(lists)
        gain = self._gain(lists)
        worth = torch.zeros_like(gain[:, :, None] - gain[:, None, :])
        if self.weighting != "ndcg_loss2":
            discount = _discount(place).reciprocal()
            worth = worth + (discount[:, :, None] - discount[:, None, :]).abs()
        if self.weighting != "lambda_rank":
            apart = (place[:, :, None] - place[:, None, :]).abs().clamp(min=1)  # the diagonal is never compared
            step = _discount(apart).reciprocal() - _discount(apart + 1).reciprocal()
            worth = worth + step.abs() * (self.mu if self.weighting == "ndcg_loss2++" else 1.0)
        return worth * (gain[:, :, None] - gain[:, None, :]).abs() / math.log(2)

    def lists(self, batch: EmbeddingBatch) -> Lists:
        lists = super().lists(batch)
        if bool(((lists.score < 0) | (lists.score > LARGEST_GRADE)).any()):
            raise DataError(
                f"scores: LambdaLoss takes gains 2^score - 1 and expects relevance grades from 0 to {LARGEST_GRADE}, got "
                f"{lists.score.min().item():.3g} to {lists.score.max().item():.3g}. Map the scores to grades such as 0 to 4, "
                "or use loss=ranknet, which reads their order alone."
            )
        return lists

    def _gain(self, lists: Lists) -> Tensor:
        """Of each candidate, as part of the best DCG, [L, C]."""
        gain = torch.exp2(lists.score) - 1
        best = gain.sort(dim=1, descending=True).values  # a place without candidate has gain 0
        place = torch.arange(1, best.shape[1] + 1, device=best.device).to(best)
        return gain / (best / _discount(place))[:, : self.top_k].sum(1, keepdim=True)


def _place(lists: Lists) -> Tensor:
    """Place of each candidate by similarity, from 1, [L, C] in the type of the similarities."""
    similarity = lists.fill(lists.similarity.detach(), -math.inf)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) + 1).to(similarity)


def _discount(place: Tensor) -> Tensor:
    return torch.log2(1 + place)
