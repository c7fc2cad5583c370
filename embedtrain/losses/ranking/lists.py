"""The frame of all losses over lists of scored candidates: a loss is one formula over padded lists.

    the scored pairs, of all ranks --by query, or all in one list--> lists [L, C] --ListLoss.per_list--> [L] --sum / divisor-->

A list whose scores are all equal has no order to teach: it is never shown to the formula, adds 0, and is counted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.ranking.pairs import pair_similarity, scored_pairs
from embedtrain.losses.shares import fraction
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


@dataclass(frozen=True, slots=True)
class Lists:
    """Scored candidates, side by side; L lists, C the longest."""

    score: Tensor  # [L, C], 0 where there is no candidate
    inside: Tensor  # [L, C] bool, where there is one
    similarity: Tensor  # [L, C], 0 where there is no candidate

    def select(self, which: Tensor) -> Lists:
        """The lists at `which` [L] bool."""
        return Lists(self.score[which], self.inside[which], self.similarity[which])

    def detach(self) -> Lists:
        return Lists(self.score, self.inside, self.similarity.detach())

    def has_order(self) -> Tensor:
        """Which lists have two scores that differ, [L] bool."""
        return self.fill(self.score, -math.inf).amax(1) > self.fill(self.score, math.inf).amin(1)

    @property
    def length(self) -> Tensor:
        """Candidates of each list, [L]."""
        return self.inside.sum(1)

    def fill(self, values: Tensor, value: float) -> Tensor:
        """`values` [L, C], and `value` where there is no candidate."""
        return values.masked_fill(~self.inside, value)

    def log_softmax(self, values: Tensor) -> Tensor:
        """Over the candidates of each list, [L, C]; 0 where there is none, so that products with it stay finite."""
        return self.fill(torch.log_softmax(self.fill(values, -math.inf), dim=1), 0.0)

    def above(self) -> Tensor:
        """Which candidate has a higher score than which, [L, C, C] bool: rows above columns."""
        both = self.inside[:, :, None] & self.inside[:, None, :]
        return both & (self.score[:, :, None] > self.score[:, None, :])


class ListLoss(nn.Module, ABC):
    """A loss over lists of scored candidates. A subclass says what one list costs, and by what the sum is divided.

    over  query: the candidates of each query are a list, of which this rank has its queries'; batch: all pairs of all
          ranks are one list, and every rank computes it in full
    """

    needs = Needs(scores=True)

    def __init__(self, *, over: Literal["query", "batch"] = "query"):
        super().__init__()
        if over not in ("query", "batch"):
            raise ConfigError(f"loss.over: expected query or batch, got {over!r}.")
        self.over = over

    @abstractmethod
    def per_list(self, lists: Lists) -> Tensor:
        """The loss of each list, [L]. Each has at least two scores that differ; L may be 0."""

    def divisor(self, lists: Lists) -> Tensor | float:
        """What the sum over lists is divided by, from the lists of all ranks; at least 1."""
        return len(lists.score)

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        lists = self.lists(batch)
        ordered = lists.has_order()
        own = torch.zeros_like(ordered)
        own[batch.rows if self.over == "query" else slice(None)] = True
        share = fraction(batch) if self.over == "batch" else 1.0
        loss = self.per_list(lists.select(own & ordered)).sum() * share / self.divisor(lists.detach())
        squashed = (own & ~ordered).sum().to(loss) * share / len(ordered)
        return LossOutput(loss, {"squashed": squashed})

    def lists(self, batch: EmbeddingBatch) -> Lists:
        """Of all ranks."""
        pairs = scored_pairs(batch)
        alone = self.over == "query"
        number = pairs.query if alone else torch.zeros_like(pairs.query)
        length = torch.bincount(number, minlength=batch.relation.num_queries if alone else 1)
        inside = torch.arange(max(1, int(length.max())), device=number.device) < length[:, None]
        order = torch.argsort(number, stable=True)
        similar = pair_similarity(batch, pairs.query[order], pairs.document[order])
        empty = similar.new_zeros(inside.shape)
        return Lists(empty.masked_scatter(inside, pairs.score[order]), inside, empty.masked_scatter(inside, similar))
