"""Row formulas: how the positives and the negatives of a query make its loss. A new softmax loss is five lines here.

s is a logit (similarity / temperature), N(term) the sum of exp(s) over the negatives of one term:

    each, joint         mean over positives p of  -log( e^s_p / (n e^s_p + sum over terms of N(term)) )
    each, separate      mean over terms and p of  -log( e^s_p / (  e^s_p + N(term)) )
    summed, joint       -log( A / (n A + sum over terms of N(term)) ),  A = sum over positives of e^s_p
    summed, separate    mean over terms of  -log( A / (A + N(term)) )

n counts the terms whose columns hold the positive itself, q2d and d2q, and is at least 1: GTE (arXiv:2308.03281, eq. 4)
sums q2d and d2q over all j, so its denominator has the positive twice; Qwen3 (arXiv:2506.05176, eq. 1) has it once.
With *each*, the other positives of a query are left out of the denominator (CoDiEmb, arXiv:2508.11442).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BlockRows:
    """What a row formula sees of a block of B queries with P positive pairs. Differentiable."""

    positive: Tensor  # [P] logit of each pair
    query: Tensor  # [P] which of the B queries
    num_queries: int  # B
    negatives: dict[str, Tensor]  # per term: log-sum-exp of the row's negatives, [B] for q2*, [P] for d2*; -inf if none

    def per_pair(self, term: str) -> Tensor:
        """The negatives of each pair, [P]."""
        return self.negatives[term][self.query] if term.startswith("q") else self.negatives[term]

    def per_query(self, term: str) -> Tensor:
        """The negatives of each query, [B]; those of its positive documents together."""
        return self.negatives[term] if term.startswith("q") else self.logsumexp(self.negatives[term])

    def logsumexp(self, pairs: Tensor) -> Tensor:
        """log of the sum of exponentials over the pairs of each query, [P] -> [B]; -inf for a query without a pair."""
        top = pairs.new_full((self.num_queries,), -math.inf).scatter_reduce(0, self.query, pairs.detach(), "amax")
        top = top.nan_to_num(neginf=0.0)
        sums = pairs.new_zeros(self.num_queries).index_add(0, self.query, torch.exp(pairs - top[self.query]))
        some = sums > 0  # log(0) would have an infinite gradient
        return torch.where(some, torch.log(torch.where(some, sums, 1.0)) + top, -math.inf)

    def mean(self, pairs: Tensor) -> Tensor:
        """The mean over the pairs of each query, [P] -> [B]; 0 for a query without a pair."""
        count = torch.bincount(self.query, minlength=self.num_queries).clamp(min=1)
        return pairs.new_zeros(self.num_queries).index_add(0, self.query, pairs) / count


# The loss of each query of a block, [B].
RowFormula = Callable[[BlockRows], Tensor]


def each_joint(rows: BlockRows) -> Tensor:
    inside = [rows.positive] * positive_count(rows)
    total = torch.logsumexp(torch.stack(inside + [rows.per_pair(term) for term in rows.negatives]), dim=0)
    return rows.mean(total - rows.positive)


def each_separate(rows: BlockRows) -> Tensor:
    losses = [torch.logaddexp(rows.positive, rows.per_pair(term)) - rows.positive for term in rows.negatives]
    return rows.mean(torch.stack(losses).mean(0))


def summed_joint(rows: BlockRows) -> Tensor:
    positives, answered = summed_positives(rows)
    inside = [positives] * positive_count(rows)
    total = torch.logsumexp(torch.stack(inside + [rows.per_query(term) for term in rows.negatives]), dim=0)
    return torch.where(answered, total - positives, 0.0)


def summed_separate(rows: BlockRows) -> Tensor:
    positives, answered = summed_positives(rows)
    losses = [torch.logaddexp(positives, rows.per_query(term)) - positives for term in rows.negatives]
    return torch.where(answered, torch.stack(losses).mean(0), 0.0)


def positive_count(rows: BlockRows) -> int:
    return max(1, len({"q2d", "d2q"} & rows.negatives.keys()))


def summed_positives(rows: BlockRows) -> tuple[Tensor, Tensor]:
    """log of the summed exponentials of each query's positives, [B], and whether there is one, [B]."""
    answered = torch.bincount(rows.query, minlength=rows.num_queries) > 0
    return torch.where(answered, rows.logsumexp(rows.positive), 0.0), answered


FORMULAS: dict[tuple[str, str], RowFormula] = {
    ("each", "joint"): each_joint,
    ("each", "separate"): each_separate,
    ("summed", "joint"): summed_joint,
    ("summed", "separate"): summed_separate,
}
