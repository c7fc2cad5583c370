"""Linear layers that do to the inputs of each model what that model's own layer does to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.merging.methods.base import PerModel, per_model, shares, weighted_sum

# Of the mean of the diagonal: what keeps directions that no input has at the mean of the models.
RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class RegMean:
    """The linear layer whose outputs are closest to those of each model's own on that model's inputs.

        W = (sum over i of w_i W_i G_i) (sum over i of w_i G_i)^-1,   G_i = X_i^T X_i over the tokens that model i reads

    Jin et al. 2023 (arXiv:2212.09849). Every other tensor is the weighted mean. Off the diagonal G is multiplied by
    `reduction`, which the paper found to help. Costs a pass over the rows, and for each linear layer a matrix of
    inputs x inputs, on disk. Reads no base.

    weight      of each model
    reduction   of G off its diagonal; 1: none
    samples     rows that are read, of each model's data
    batch_size  queries that are read together
    seed        of the rows that are drawn
    """

    weight: PerModel = 1.0
    reduction: float = 0.9
    samples: int = 1024
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.reduction <= 1:
            raise ConfigError(f"reduction: expected a factor of 0 to 1, got {self.reduction:g}.")

    def of(self, statistics: Sequence[Mapping[str, Tensor]]) -> RegMeanSolution:
        return RegMeanSolution(statistics=statistics, weight=self.weight, reduction=self.reduction)


@dataclass(frozen=True, kw_only=True)
class RegMeanSolution:
    """`RegMean` with what was measured: of each model, G [in, in] by name of the weight [out, in]."""

    statistics: Sequence[Mapping[str, Tensor]]
    weight: PerModel = 1.0
    reduction: float = 0.9

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
        count = len(models)
        mean = weighted_sum(models, shares(self.weight, count))
        if any(name not in known for known in self.statistics):
            return mean
        weights = per_model(self.weight, count, "weight")
        grams = [
            w * reduced(known[name].double(), self.reduction) for w, known in zip(weights, self.statistics, strict=True)
        ]
        total = torch.stack(grams).sum(0)
        if not bool(total.any()):
            return mean
        ridge = RIDGE * total.diagonal().mean()
        wanted = torch.stack([model.double() @ gram for model, gram in zip(models, grams, strict=True)]).sum(0)
        total = total + ridge * torch.eye(len(total), dtype=total.dtype)
        return torch.linalg.solve(total, (wanted + ridge * mean.double()).T).T.to(mean.dtype)


def reduced(gram: Tensor, factor: float) -> Tensor:
    """[in, in], with everything off the diagonal multiplied by `factor`."""
    return factor * gram + (1 - factor) * torch.diag(gram.diagonal())
