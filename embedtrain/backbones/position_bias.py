"""What is added to the scores of attention as a function of positions alone: one pattern, scaled by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from embedtrain.backbones.ragged import RaggedLayout


class PositionBias(Protocol):
    """Added to the scaled score of query i and key j of head h:  factors[h] * pattern[i, j]."""

    @property
    def factors(self) -> tuple[float, ...] | None:
        """One for each head; None: 1 for all of them."""
        ...

    def pattern(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[length, length], query by key, of a text of so many tokens; at least fp32. Minus infinity hides a key."""
        ...


def padded_bias(bias: PositionBias, layout: RaggedLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Of every text, [N, heads or 1, T, T] in `dtype`; 0 where a text has no token."""
    exact: dict[str, Any] = {"device": device, "dtype": torch.promote_types(dtype, torch.float32)}
    patterns = torch.zeros(len(layout.lengths), 1, layout.longest, layout.longest, **exact)
    text = 0
    for _, texts, length in layout.groups:
        patterns[text : text + texts, :, :length, :length] = bias.pattern(length, **exact)
        text += texts
    if bias.factors is not None:
        patterns = patterns * torch.tensor(bias.factors, **exact)[:, None, None]
    return patterns.to(dtype)


@dataclass(frozen=True)
class Alibi:
    """-m_h |i - j|: ALiBi (arXiv:2108.12409) in both directions. `slopes`: m_h of each head."""

    slopes: tuple[float, ...]

    @property
    def factors(self) -> tuple[float, ...]:
        return self.slopes

    def pattern(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        position = torch.arange(length, device=device, dtype=dtype)
        return -(position[:, None] - position).abs()
