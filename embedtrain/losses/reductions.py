"""Reductions: what becomes of a row's negatives before the row formula sees them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reduced:
    """What a reduction makes of the logits of a block: one statistic per row, and its gradient."""

    statistic: Tensor  # [R]
    weights: Tensor  # [R, C]; d statistic / d logit = factor [R] * weights
    factor: Tensor  # [R]


# Logits [R, C], overwritten, and the largest of each row [R] -> what the row formula is given for these negatives.
Reduction = Callable[[Tensor, Tensor], Reduced]


def softmax(logits: Tensor, top: Tensor) -> Reduced:
    """log of the sum of exponentials; -inf for a row without negatives."""
    shift = top.nan_to_num(neginf=0.0)  # exp(-inf - 0) = 0, never -inf - -inf
    weights = logits.sub_(shift[:, None]).exp_()
    statistic = torch.log(weights.sum(1)) + shift
    none = statistic == -math.inf
    return Reduced(statistic, weights, torch.exp(shift - statistic.masked_fill(none, math.inf)))


def sigmoid(logits: Tensor, top: Tensor) -> Reduced:
    """The sum of log(1 + exp(logit)); 0 for a row without negatives."""
    statistic = torch.nn.functional.softplus(logits).sum(1)
    return Reduced(statistic, logits.sigmoid_(), torch.ones_like(statistic))
