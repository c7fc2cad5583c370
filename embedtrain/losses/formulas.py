"""Row formulas: how the positives and the negatives of a query make its loss. A new softmax loss is five lines here.

s is a logit (similarity / temperature), N(term) the sum of exp(s) over the negatives of one term:

    each, joint         mean over positives p of  -log( e^s_p / (n e^s_p + sum over terms of N(term)) )
    each, separate      mean over terms and p of  -log( e^s_p / (  e^s_p + N(term)) )
    summed, joint       -log( A / (n A + sum over terms of N(term)) ),  A = sum over positives of e^s_p
    summed, separate    mean over terms of  -log( A / (A + N(term)) )

n counts the terms whose columns hold the positive itself, q2d and d2q, and is at least 1: GTE (arXiv:2308.03281)
sums q2d and d2q over all j, so its denominator has the positive twice; Qwen3 (arXiv:2506.05176) has it once.
With *each*, the other positives of a query are left out of the denominator (CoDiEmb, arXiv:2508.11442). *Decoupled*
(arXiv:2110.06848) leaves the positive itself out as well, n = 0: its gradient no longer shrinks as the positive comes near.

    sigmoid             mean over p of log(1 + e^-s_p) + sum over terms of the sum over negatives of log(1 + e^s)
    focal               any of these times (1 - p)^gamma, p = e^-loss, without gradient through the factor
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus


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

    def smallest(self, values: Tensor) -> Tensor:
        """inf for a query without a pair."""
        return -self.largest(-values)

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


def each_joint(rows: BlockRows, *, inside: bool = True) -> Tensor:
    own = [rows.positive] * positive_count(rows, inside)
    return rows.pairs.mean(_minus_log_share(rows.positive, own, [rows.per_pair(term) for term in rows.negatives]))


def each_separate(rows: BlockRows, *, inside: bool = True) -> Tensor:
    own = [rows.positive] if inside else []
    losses = [_minus_log_share(rows.positive, own, [rows.per_pair(term)]) for term in rows.negatives]
    return rows.pairs.mean(torch.stack(losses).mean(0))


def summed_joint(rows: BlockRows, *, inside: bool = True) -> Tensor:
    positives, answered = summed_positives(rows)
    own = [positives] * positive_count(rows, inside)
    loss = _minus_log_share(positives, own, [rows.per_query(term) for term in rows.negatives])
    return torch.where(answered, loss, 0.0)


def summed_separate(rows: BlockRows, *, inside: bool = True) -> Tensor:
    positives, answered = summed_positives(rows)
    own = [positives] if inside else []
    losses = [_minus_log_share(positives, own, [rows.per_query(term)]) for term in rows.negatives]
    return torch.where(answered, torch.stack(losses).mean(0), 0.0)


def sigmoid_pairs(rows: BlockRows) -> Tensor:
    """For negatives reduced by `reductions.sigmoid`. A query without a pair counts its negatives alone."""
    negatives = [
        rows.negatives[term] if term[0] == "q" else rows.pairs.mean(rows.negatives[term]) for term in rows.negatives
    ]
    return rows.pairs.mean(softplus(-rows.positive)) + torch.stack(negatives).sum(0)


def focal(formula: RowFormula, gamma: float) -> RowFormula:
    """Rows that are nearly solved count less: (1 - p)^gamma with p = e^-loss (KaLM-Embedding V2, arXiv:2506.20923)."""

    def weighted(rows: BlockRows) -> Tensor:
        loss = formula(rows)
        return (1 - torch.exp(-loss.detach())).clamp(min=0) ** gamma * loss

    return weighted


def positive_count(rows: BlockRows, inside: bool) -> int:
    return max(1, len({"q2d", "d2q"} & rows.negatives.keys())) if inside else 0


def summed_positives(rows: BlockRows) -> tuple[Tensor, Tensor]:
    """log of the summed exponentials of each query's positives, [B], and whether there is one, [B]."""
    answered = rows.pairs.count > 0
    return torch.where(answered, rows.pairs.logsumexp(rows.positive), 0.0), answered


def _minus_log_share(positive: Tensor, own: list[Tensor], negatives: list[Tensor]) -> Tensor:
    """log of the summed exponentials of `own` and `negatives`, less `positive`; 0 where there is nothing to sum."""
    parts = torch.stack([*own, *negatives])
    empty = (parts.detach() == -math.inf).all(0)
    return torch.where(empty, 0.0, torch.logsumexp(torch.where(empty, 0.0, parts), dim=0) - positive)


FORMULAS: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("each", "joint"): each_joint,
    ("each", "separate"): each_separate,
    ("summed", "joint"): summed_joint,
    ("summed", "separate"): summed_separate,
}
