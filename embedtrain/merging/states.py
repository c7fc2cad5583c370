"""Whole models through a method, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.merging.methods.base import TensorMethod

State = Mapping[str, Tensor]


def merge_states(
    method: TensorMethod, models: Sequence[State], base: State | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name, merged tensor) in the order of the first model: fp32 on the CPU; what is not floating, as it is.

    Where a state reads its tensors from disk when they are asked for, one tensor of each model is in memory at a time. Raises
    ConfigError for integers that differ, naming tensor and model: they cannot be averaged.
    """
    for name in models[0]:
        tensors = [model[name] for model in models]
        if tensors[0].is_floating_point():
            of_base = None if base is None else base[name].float()
            yield name, method(name, [tensor.float() for tensor in tensors], of_base).contiguous()
            continue
        for number, tensor in enumerate(tensors[1:], 2):
            if not torch.equal(tensor, tensors[0]):
                raise ConfigError(
                    f"models: {name} ({tensor.dtype}) is not the same in the first model and in model {number}. Whole numbers "
                    "cannot be merged; quantised weights have to be converted first."
                )
        yield name, tensors[0]
