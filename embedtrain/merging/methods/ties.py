"""Trim what is small, agree on a sign, average those that have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.merging.methods.base import PerModel, column, per_model, refuse_density, task_vectors


@dataclass(frozen=True, kw_only=True)
class Ties:
    """Trims each task vector to its largest entries, elects a sign for each entry, and averages those that agree with it.

        tau_i = trim(theta_i - theta_0),   s = sign(sum over i of w_i tau_i)
        theta_0 + lambda * sum over i with sign(tau_i) = s of w_i tau_i / sum over the same of w_i

    Yadav et al. 2023 (arXiv:2306.01708). Trimmed tensor by tensor, as mergekit does; the paper ranks the entries of all
    tensors together. Where the signed sum is exactly 0 the sign is positive.

    weight     of each model
    density    share of the entries that are kept, of each model
    lambda     of the mean
    normalize  divide by the weights of those that agree; false: their sum
    """

    weight: PerModel = 1.0
    density: PerModel = 0.2
    lambda_: float = 1.0
    normalize: bool = True

    def __post_init__(self) -> None:
        refuse_density(self.density)

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
        count = len(models)
        density = per_model(self.density, count, "density")
        trimmed = [trim(learned, kept) for learned, kept in zip(task_vectors(models, base), density, strict=True)]
        agreed = agreeing(torch.stack(trimmed), per_model(self.weight, count, "weight"), normalize=self.normalize)
        assert base is not None
        return base + self.lambda_ * agreed


def trim(values: Tensor, density: float) -> Tensor:
    """The `density` largest entries by size, at least one; 0 in place of the others. Entries of equal size stay together."""
    kept = max(1, int(density * values.numel()))
    if kept >= values.numel():
        return values
    sizes = values.abs()
    smallest = sizes.flatten().kthvalue(values.numel() - kept + 1).values
    return values.where(sizes >= smallest, torch.zeros_like(values))


def agreeing(values: Tensor, weights: Sequence[float], *, normalize: bool) -> Tensor:
    """[M, ...] -> [...]: the weighted mean, or sum, of the entries that have the sign of the weighted sum; 0 without any."""
    factors = column(weights, values)
    weighted = values * factors
    elected = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = weighted.sign() == elected
    total = weighted.where(agree, torch.zeros_like(weighted)).sum(0)
    if not normalize:
        return total
    voters = (factors * agree).sum(0)
    return total / voters.where(voters != 0, torch.ones_like(voters))
