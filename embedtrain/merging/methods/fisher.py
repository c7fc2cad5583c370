"""Each weight from the models whose loss depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.merging.methods.base import PerModel, column, per_model


@dataclass(frozen=True, kw_only=True)
class Fisher:
    """The average of the models, weighted for every single weight by how much the model's own loss depends on it.

        sum over i of w_i F_i theta_i / sum over i of w_i F_i,   F_i = mean over batches of (d loss / d theta_i)^2

    Matena & Raffel 2022 (arXiv:2111.09832). The diagonal of the empirical Fisher matrix of the contrastive loss: since a query
    is contrasted with its batch, there is a gradient for each batch, not for each row. Where no model depends on a weight it
    is their weighted mean. A run is measured on its own data by its own loss, unless data is given. Reads no base.

    weight      of each model
    samples     rows that are read, of each model's data
    batch_size  queries in a batch
    seed        of the rows that are drawn
    """

    weight: PerModel = 1.0
    samples: int = 2048
    batch_size: int = 32
    seed: int = 0

    def of(self, statistics: Sequence[Mapping[str, Tensor]]) -> FisherMean:
        return FisherMean(statistics=statistics, weight=self.weight)


@dataclass(frozen=True, kw_only=True)
class FisherMean:
    """`Fisher` with what was measured: of each model, F by name of the tensor, in its shape."""

    statistics: Sequence[Mapping[str, Tensor]]
    weight: PerModel = 1.0

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
        weights = column(per_model(self.weight, len(models), "weight"), models[0][None])
        fisher = torch.stack([known[name].float() for known in self.statistics])
        # Squares of small gradients are near the smallest numbers; only their ratios count.
        fisher = fisher / fisher.max().clamp(min=torch.finfo(torch.float32).tiny) * weights
        total = fisher.sum(0)
        nowhere = total == 0
        shares = torch.where(nowhere, weights / weights.sum(), fisher / total.where(~nowhere, torch.ones_like(total)))
        return (shares * torch.stack(list(models))).sum(0)
