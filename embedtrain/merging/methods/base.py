"""What a method is, and what all of them do with the weight of each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from embedtrain.errors import ConfigError

PerModel = float | list[float]  # one number for all models, or one for each in their order


class TensorMethod(Protocol):
    """One tensor of the merged model from the tensors of that name. Knows no files and no other tensors.

    name: of the tensor. models: M tensors of one shape, fp32. base: the same of the base model, for methods that read one.
    """

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor: ...


def per_model(value: PerModel, count: int, key: str) -> list[float]:
    """`value` for each of `count` models. Raises ConfigError for a list of another length."""
    if not isinstance(value, list | tuple):
        return [float(value)] * count
    if len(value) != count:
        raise ConfigError(
            f"{key}: expected one number, or one for each of the {count} models, got {len(value)}: {value}."
        )
    return [float(one) for one in value]


def shares(weight: PerModel, count: int) -> list[float]:
    """The weights over their sum. Raises ConfigError where they add up to nothing."""
    weights = per_model(weight, count, "weight")
    total = sum(weights)
    if abs(total) < 1e-8:
        raise ConfigError(
            f"weight: {weights} add up to {total:g}, so there is no mean. Use others, or normalize=false."
        )
    return [one / total for one in weights]


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum over i of w_i t_i, without a stack of the tensors."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def task_vectors(models: Sequence[Tensor], base: Tensor | None) -> list[Tensor]:
    """What each model learned: its weights minus those of the base."""
    assert base is not None, "the command refuses a method that reads a base where there is none"
    return [model - base for model in models]


def refuse_density(density: PerModel) -> None:
    for one in density if isinstance(density, list | tuple) else [density]:
        if not 0 < one <= 1:
            raise ConfigError(f"density: expected a share above 0 and at most 1, got {one:g}.")


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """[M] numbers as a tensor that multiplies a stack [M, ...]."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 1))
