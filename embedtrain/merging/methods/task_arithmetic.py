"""A base plus what each model learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from embedtrain.merging.methods.base import PerModel, per_model, shares, task_vectors, weighted_sum


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic:
    """The base plus the weighted sum of the task vectors.

        theta_0 + lambda * sum over i of w_i (theta_i - theta_0)

    Ilharco et al. 2023 (arXiv:2212.04089). A negative weight takes away what a model learned.

    weight     of each model
    lambda     of the sum
    normalize  divide by the sum of the weights
    """

    weight: PerModel = 1.0
    lambda_: float = 1.0
    normalize: bool = False

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
        count = len(models)
        weights = shares(self.weight, count) if self.normalize else per_model(self.weight, count, "weight")
        learned = weighted_sum(task_vectors(models, base), weights)
        assert base is not None
        return base + self.lambda_ * learned
