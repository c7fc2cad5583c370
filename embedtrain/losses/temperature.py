"""The temperature of a softmax over similarities: fixed, or learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError

# CLIP (arXiv:2103.00020, section 2.5) keeps 1 / temperature at most 100; above 1 a softmax over cosines is nearly flat.
LEARNED_RANGE = (0.01, 1.0)


class Temperature(nn.Module):
    """Divides similarities. Learned, it is the parameter log_scale = log(1 / temperature), kept within 0.01 .. 1."""

    def __init__(self, start: float, *, learned: bool = False):
        super().__init__()
        if start <= 0:
            raise ConfigError(f"loss.temperature: expected a number above 0, got {start}. Common: 0.01 to 0.1.")
        low, high = LEARNED_RANGE
        if learned and not low <= start <= high:
            raise ConfigError(
                f"loss.temperature: a learned temperature stays within {low} to {high}, got {start} to start from. "
                "Start inside, or use learn_temperature: false."
            )
        self.start = start
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start))) if learned else None

    @property
    def learned(self) -> bool:
        return self.log_scale is not None

    def scale(self, like: Tensor) -> Tensor:
        """1 / temperature, scalar, fp32 (fp64 for fp64 embeddings), on the device of `like`."""
        if self.log_scale is None:
            kind = like.dtype if like.dtype == torch.float64 else torch.float32
            return torch.tensor(1 / self.start, dtype=kind, device=like.device)
        low, high = LEARNED_RANGE
        with torch.no_grad():  # brought back into its range, so that a later gradient can still move it
            self.log_scale.clamp_(-math.log(high), -math.log(low))
        return self.log_scale.exp()
