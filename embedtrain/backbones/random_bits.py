"""Dropout masks at a third of the price.

On a CPU `nn.Dropout` draws one 32-bit number per element and costs as much as a matrix product. Sixteen bits are
enough: a 64-bit draw gives the masks of four elements, and the probability is rounded to 1/65536, with the survivors
scaled by the rounded value so that the mean stays exact. Draws come from torch's own generator: restoring its state
replays the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STEPS = 1 << 16


def keep_mask(shape: tuple[int, ...] | torch.Size, probability: float) -> tuple[Tensor, float]:
    """A bool mask on the CPU, false with `probability`, and the factor that keeps the mean of what survives.

    `probability` in [0, 1) is rounded to 1/65536, but never up to 1.
    """
    dropped = min(round(probability * _STEPS), _STEPS - 1)
    count = torch.Size(shape).numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[:count].view(shape)  # uniform over -32768 .. 32767
    return bits >= dropped - _STEPS // 2, _STEPS / (_STEPS - dropped)


class _CheapDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, probability: float) -> Tensor:
        keep, scale = keep_mask(x.shape, probability)
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * scale).mul_(keep)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (keep,) = ctx.saved_tensors
        return (gradient * ctx.scale).mul_(keep), None


class CheapDropout(nn.Dropout):
    """`nn.Dropout` with cheap masks on the CPU; the same as its parent elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or self.p == 1 or input.device.type != "cpu":
            return super().forward(input)
        return _CheapDropout.apply(input, self.p)


def replace_dropout(model: nn.Module) -> None:
    """Every `nn.Dropout` in `model` becomes a `CheapDropout`, in place. It has no weights, so no state dict changes."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = CheapDropout
