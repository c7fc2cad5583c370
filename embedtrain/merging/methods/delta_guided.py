"""Each weight from the models that moved it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.merging.methods.base import PerModel, column, per_model, task_vectors


@dataclass(frozen=True, kw_only=True)
class DeltaGuided:
    """Weighs the models anew for every single weight, by how far each has moved it from the base.

        theta_0 + lambda * sum over i of (w_i |d_i| / sum over j of w_j |d_j|) d_i,   d_i = theta_i - theta_0

    After CoDiEmb (arXiv:2508.11442), which derives the weight of each parameter from |theta_i - theta_0| and does not print
    its formula in the text that was at hand: this is the plainest one that does so. A weight that no model moved stays.

    weight  of each model
    lambda  of what is added to the base
    """

    weight: PerModel = 1.0
    lambda_: float = 1.0

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
        learned = torch.stack(task_vectors(models, base))
        moved = column(per_model(self.weight, len(models), "weight"), learned) * learned.abs()
        total = moved.sum(0)
        mean = (moved * learned).sum(0) / total.where(total != 0, torch.ones_like(total))
        assert base is not None
        return base + self.lambda_ * mean
