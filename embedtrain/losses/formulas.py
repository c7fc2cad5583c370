"""Row formulas: how the positives and the negatives of a query make its loss. A new softmax loss is five lines here.

s is a logit (similarity / temperature), N(term) the sum of exp(s) over the negatives of one term:

    each, joint         mean over positives p of  -log( e^s_p / (n e^s_p + sum over terms of N(term)) )
    each, separate      mean over terms and p of  -log( e^s_p / (  e^s_p + N(term)) )
    summed, joint       -log( A / (n A + sum over terms of N(term)) ),  A = sum over positives of e^s_p
    summed, separate    mean over terms of  -log( A / (A + N(term)) )

n counts the terms whose columns hold the positive itself, q2d and d2q, and is at least 1: GTE (arXiv:2308.03281)
sums q2d and d2q over all j, so its denominator has the positive twice; Qwen3 (arXiv:2506.05176) has it once.
With *each*, the other positives of a query are left out of the denominator (CoDiEmb, arXiv:2508.11442).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pairs:
    """The P positive pairs of a block of B queries, and what can be said of each query's pairs together: [P] -> [B]."""

    query: Tensor  # [P] which of the B queries
    count: Tensor  # [B] pairs of each query; 0 for one that brought no positive

    def mean(self, values: Tensor) -> Tensor:
        """0 for a query without a pair."""
        return values.new_zeros(len(self.count)).index_add(0, self.query, values) / self.count.clamp(min=1)

    def largest(self, values: Tensor) -> Tensor:
        """-inf for a query without a pair."""
        return values.new_full((len(self.count),), -math.inf).scatter_reduce(0, self.query, values, "amax")

    def logsumexp(self, values: Tensor) -> Tensor:
        """log of the sum of exponentials; -inf for a query without a pair."""
        top = self.largest(values.detach()).nan_to_num(neginf=0.0)
        sums = torch.zeros_like(top).index_add(0, self.query, torch.exp(values - top[self.query]))
        some = sums > 0  # the gradient of log(0) is infinite
        return torch.where(some, torch.log(torch.where(some, sums, 1.0)) + top, -math.inf)


@dataclass(frozen=True, slots=True)
class BlockRows:
    """What a row formula sees of a block: numbers of rows, never of pairs of texts. Differentiable."""

    pairs: Pairs
    positive: Tensor  # [P] logit of each pair
    negatives: dict[str, Tensor]  # per term: log-sum-exp of the row's negatives, [B] for q2*, [P] for d2*; -inf if none

    def per_pair(self, term: str) -> Tensor:
        """The negatives of each pair, [P]."""
        return self.negatives[term][self.pairs.query] if term.startswith("q") else self.negatives[term]

    def per_query(self, term: str) -> Tensor:
        """The negatives of each query, [B]; those of its positive documents together."""
        return self.negatives[term] if term.startswith("q") else self.pairs.logsumexp(self.negatives[term])


# The loss of each query of a block, [B].
RowFormula = Callable[[BlockRows], Tensor]


def each_joint(rows: BlockRows) -> Tensor:
    inside = [rows.positive] * positive_count(rows)
    total = torch.logsumexp(torch.stack(inside + [rows.per_pair(term) for term in rows.negatives]), dim=0)
    return rows.pairs.mean(total - rows.positive)


def each_separate(rows: BlockRows) -> Tensor:
    losses = [torch.logaddexp(rows.positive, rows.per_pair(term)) - rows.positive for term in rows.negatives]
    return rows.pairs.mean(torch.stack(losses).mean(0))


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
    answered = rows.pairs.count > 0
    return torch.where(answered, rows.pairs.logsumexp(rows.positive), 0.0), answered


FORMULAS: dict[tuple[str, str], RowFormula] = {
    ("each", "joint"): each_joint,
    ("each", "separate"): each_separate,
    ("summed", "joint"): summed_joint,
    ("summed", "separate"): summed_separate,
}
