"""Several losses of one batch, added up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from embedtrain.errors import ConfigError
from embedtrain.types import EmbeddingBatch, LossOutput


class WeightedSum(nn.Module):
    """Several losses of one batch, added up.

        sum over names of  weight * loss(batch)

    Routed gives each source of the mixture a loss of its own instead. Metrics: the value of each as loss_<name>, before
    its weight, and its own metrics as <name>/<metric>.
    Cost: that of the losses.

    losses    the losses by name; null drops one
    weights   by name; one that is not there is 1
    """

    def __init__(self, *, losses: Mapping[str, nn.Module | None], weights: Mapping[str, float] | None = None):
        super().__init__()
        chosen = {name: loss for name, loss in losses.items() if loss is not None}
        weights = dict(weights or {})
        if not chosen:
            raise ConfigError("loss.losses is empty. Name at least one loss, for example losses: {contrast: ...}.")
        unknown = sorted(set(weights) - set(losses))
        if unknown:
            raise ConfigError(f"loss.weights: {', '.join(unknown)} is no loss here. There are: {', '.join(chosen)}.")
        self.losses = nn.ModuleDict(chosen)
        self.weights = {name: float(weights.get(name, 1.0)) for name in chosen}

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        outputs: dict[str, LossOutput] = {name: loss(batch) for name, loss in self.losses.items()}
        loss = torch.stack([self.weights[name] * output.loss for name, output in outputs.items()]).sum()
        metrics = {f"loss_{name}": output.loss.detach() for name, output in outputs.items()}
        for name, output in outputs.items():
            metrics |= {f"{name}/{key}": value for key, value in output.metrics.items()}
        return LossOutput(loss, metrics)
