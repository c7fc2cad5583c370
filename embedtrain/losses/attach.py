"""Joins a value to the graph by gradients that are known already: for losses that make both in one pass over blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attach(value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
    """`value`, a scalar, whose gradient by each of `inputs` is the one given. It cannot be differentiated twice."""
    return _Attach.apply(value, gradients, *inputs)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        return None, None, *(g * gradient for g in ctx.saved_tensors)
