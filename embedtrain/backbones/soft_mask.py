"""A mask of the future that opens as training goes on, from causal to bidirectional.

    p_ij = M_ij exp(s_ij) / sum_k M_ik exp(s_ik)        s: scaled scores of query i and key j; log M is what is added to them
    M_ij(t) = 1 for j <= i,   min(a(t) L / j, 1) for j > i        1 <= i, j <= L, the tokens of the text

        linear           a(t) = t / T
        accelerating     a(t) = (t / T)^2
        decelerating     a(t) = 1 - (1 - t / T)^2

t is the number of updates made, so a run begins causal and, T updates later, is bidirectional to the bit; whatever is measured
in between is measured through the mask of that moment. A mask is a function of t alone: nothing of it is in a checkpoint.

Conan-embedding-v2 (arXiv:2509.12892), sec. 3.2 and app. C. A causal mask has full rank and a bidirectional one rank 1: keys open
from the front of the text, so that the rank falls one by one and not at once. Its eq. 4 is quoted with the ratio both ways up;
this is the one that does what the text says of it, keys in front first and all of them at the end. That M multiplies the weights
before they are normalised, and that L is a text's own length, is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "accelerating": lambda share: share**2,
    "decelerating": lambda share: 1 - (1 - share) ** 2,
}


@dataclass(frozen=True)
class Opening:
    """log M as a bias by position; `alpha` in [0, 1)."""

    alpha: float
    factors: None = None

    def pattern(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        position = torch.arange(1, length + 1, device=device, dtype=dtype)
        weight = (self.alpha * length / position).clamp(max=1.0)
        return torch.where(position > position[:, None], weight.log(), 0.0)


class SoftMask(nn.Module):
    """The keys of `backbone.soft_mask`.

    steps: updates after which attention is bidirectional, T.
    shape: of a(t): "linear", "accelerating" or "decelerating". The paper found the first best.
    """

    def __init__(self, *, steps: int, shape: str = "linear") -> None:
        super().__init__()
        if not isinstance(steps, int) or steps < 1:
            raise ConfigError(
                f"backbone.soft_mask.steps={steps!r}: expected the number of updates until the mask is open."
            )
        if shape not in SHAPES:
            raise ConfigError(f"backbone.soft_mask.shape: expected one of {', '.join(SHAPES)}, got {shape!r}.")
        self.steps = steps
        self.shape = shape
        self.step: float = 0  # updates made: said by whoever makes them (`set_step`)

    @property
    def alpha(self) -> float:
        return SHAPES[self.shape](min(self.step / self.steps, 1.0))

    @property
    def bias(self) -> Opening | None:
        """What is added to the scores now; None once attention is bidirectional."""
        return None if self.step >= self.steps else Opening(self.alpha)


def _soft_masks(model: nn.Module) -> list[SoftMask]:
    return [module for module in model.modules() if isinstance(module, SoftMask)]


def set_step(model: nn.Module, step: int) -> None:
    """Every soft mask in `model` as it is after `step` updates."""
    for mask in _soft_masks(model):
        mask.step = step


def refuse_unfinished(model: nn.Module, total_steps: int) -> None:
    """Raises ConfigError for a soft mask that a run of so many steps leaves half open."""
    for mask in _soft_masks(model):
        if mask.steps > total_steps:
            raise ConfigError(
                f"backbone.soft_mask.steps={mask.steps}: the run ends after {total_steps} steps, with a mask that is neither "
                f"causal nor bidirectional and that no exported model can have. Use at most {total_steps}, or train longer."
            )


def refuse_half_open(model: nn.Module) -> None:
    """Raises ConfigError for a model whose mask has not opened yet."""
    for mask in _soft_masks(model):
        if mask.bias is not None:
            raise ConfigError(
                f"backbone.attention: the soft mask is at update {mask.step} of {mask.steps}, and an exported model is "
                "bidirectional. Go on with the run until the mask is open, or start it again with fewer backbone.soft_mask.steps."
            )
