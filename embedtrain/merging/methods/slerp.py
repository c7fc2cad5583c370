"""Along the arc between two models, not along the chord."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.merging.methods.base import PerModel, per_model

# |cos| above which two tensors are taken as parallel, and the arc as its chord.
PARALLEL = 0.9995


@dataclass(frozen=True, kw_only=True)
class Slerp:
    """Spherical interpolation between models, tensor by tensor.

        sin((1 - t) alpha) / sin(alpha) theta_1  +  sin(t alpha) / sin(alpha) theta_2,   alpha the angle between them

    Shoemake 1985. Qwen3-Embedding (arXiv:2506.05176) merges checkpoints of its last stage so. t = 0 is the first model,
    t = 1 the second; between tensors that are nearly parallel, or opposite, it is the straight line. With more than two
    models the result so far is turned towards the next one: with t_k = w_k / (w_1 + ... + w_k), so that where angles are
    small each counts by its weight. The order of more than two models matters a little. Reads no base.

    t       of two models: how far from the first to the second; null: by their weights
    weight  of each model, where t is null
    """

    t: float | None = None
    weight: PerModel = 1.0

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
        steps = self._steps(len(models))
        merged = models[0]
        for model, t in zip(models[1:], steps, strict=True):
            merged = slerp(merged, model, t)
        return merged

    def _steps(self, count: int) -> list[float]:
        if self.t is not None:
            if count != 2:
                raise ConfigError(f"t: is for two models, got {count}. Give each a weight in its place: weight=[...].")
            return [self.t]
        weights = per_model(self.weight, count, "weight")
        if min(weights) < 0 or weights[0] == 0:
            raise ConfigError(
                f"weight: slerp takes weights of 0 or more, and above 0 for the first model, got {weights}."
            )
        return [weights[k] / sum(weights[: k + 1]) for k in range(1, count)]


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """From `first` (t = 0) to `second` (t = 1). The angle is computed in fp64, the sum in the numbers of the tensors."""
    one, two = arc(cosine(first, second), t)
    return first * one + second * two


def cosine(first: Tensor, second: Tensor) -> float:
    """Of two tensors as vectors; 1 where one of them is zero."""
    a, b = first.flatten().double(), second.flatten().double()
    lengths = a.norm() * b.norm()
    return 1.0 if lengths == 0 else float(torch.dot(a, b) / lengths)


def arc(cos: float, t: float) -> tuple[float, float]:
    """How much of each end there is at t."""
    if abs(cos) > PARALLEL:
        return 1 - t, t
    alpha = math.acos(cos)
    return math.sin((1 - t) * alpha) / math.sin(alpha), math.sin(t * alpha) / math.sin(alpha)
