"""Drop most of what each model learned at random, and make the rest larger by as much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.merging.methods.base import (
    PerModel,
    per_model,
    refuse_density,
    shares,
    task_vectors,
    weighted_sum,
)
from embedtrain.merging.methods.ties import agreeing
from embedtrain.types import text_id


@dataclass(frozen=True, kw_only=True)
class DareLinear:
    """Task arithmetic of task vectors of which a random part is dropped and the rest rescaled, so that their mean stays.

        theta_0 + lambda * sum over i of w_i m_i (theta_i - theta_0) / density,   m_i ~ Bernoulli(density)

    Yu et al. 2024 (arXiv:2311.03099). What is dropped is a function of seed, place of the model and name of the tensor.

    weight     of each model
    density    share of the entries that are kept, of each model
    lambda     of the sum
    normalize  divide by the sum of the weights
    seed       of what is dropped
    """

    weight: PerModel = 1.0
    density: PerModel = 0.5
    lambda_: float = 1.0
    normalize: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_density(self.density)

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
        count = len(models)
        weights = shares(self.weight, count) if self.normalize else per_model(self.weight, count, "weight")
        learned = dropped(task_vectors(models, base), per_model(self.density, count, "density"), self.seed, name)
        assert base is not None
        return base + self.lambda_ * weighted_sum(learned, weights)


@dataclass(frozen=True, kw_only=True)
class DareTies:
    """TIES of task vectors of which a random part is dropped and the rest rescaled, in place of trimming.

        tau_i = m_i (theta_i - theta_0) / density,   m_i ~ Bernoulli(density),   s = sign(sum over i of w_i tau_i)
        theta_0 + lambda * sum over i with sign(tau_i) = s of w_i tau_i

    Yu et al. 2024 (arXiv:2311.03099), with the signs of Yadav et al. 2023 (arXiv:2306.01708).

    weight     of each model
    density    share of the entries that are kept, of each model
    lambda     of the sum
    normalize  divide by the weights of those that agree
    seed       of what is dropped
    """

    weight: PerModel = 1.0
    density: PerModel = 0.5
    lambda_: float = 1.0
    normalize: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_density(self.density)

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
        count = len(models)
        learned = dropped(task_vectors(models, base), per_model(self.density, count, "density"), self.seed, name)
        agreed = agreeing(torch.stack(learned), per_model(self.weight, count, "weight"), normalize=self.normalize)
        assert base is not None
        return base + self.lambda_ * agreed


def dropped(learned: Sequence[Tensor], density: Sequence[float], seed: int, name: str) -> list[Tensor]:
    """Each entry kept with its model's probability, and then divided by it."""
    found = []
    for number, (values, kept) in enumerate(zip(learned, density, strict=True)):
        draw = torch.Generator().manual_seed(text_id(f"{seed} {number} {name}"))
        keep = torch.rand(values.shape, generator=draw) < kept
        found.append(values.where(keep, torch.zeros_like(values)) / kept)
    return found
