"""The layout of a ragged batch inside a backbone: where each text lies in the flat run of tokens, and its positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from embedtrain.types import RaggedTokens


@dataclass(frozen=True)
class RaggedLayout:
    """Where N texts lie in a flat run of S tokens. Plain numbers: it passes through a model without touching a device."""

    lengths: tuple[int, ...]  # tokens of each text
    seen: tuple[int, ...] | None = None  # of them, how many at its start are seen by its tokens; None: all

    @classmethod
    def of(cls, tokens: RaggedTokens) -> RaggedLayout:
        seen = None
        if tokens.unseen is not None and bool(tokens.unseen.any()):
            seen = tuple((tokens.lengths - tokens.unseen).tolist())
        return cls(tuple(tokens.lengths.tolist()), seen)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First token of each text, and the end of the last: [N + 1]."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        return tuple(starts)

    @property
    def num_tokens(self) -> int:
        return self.offsets[-1]

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def groups(self) -> tuple[tuple[int, int, int], ...]:
        """Runs of neighbours of equal length, as (first token, texts, tokens of each)."""
        runs: list[tuple[int, int, int]] = []
        for start, length in zip(self.offsets, self.lengths, strict=False):
            if runs and runs[-1][2] == length:
                first, texts, _ = runs[-1]
                runs[-1] = (first, texts + 1, length)
            else:
                runs.append((start, 1, length))
        return tuple(runs)

    def keys(self, device: torch.device) -> Tensor:
        """[N, T], true for the tokens of each text that its tokens see."""
        lengths = torch.tensor(self.lengths if self.seen is None else self.seen, device=device)
        return torch.arange(self.longest, device=device) < lengths[:, None]

    def positions(self, device: torch.device) -> Tensor:
        """0, 1, 2, ... within each text, [S]."""
        lengths = torch.tensor(self.lengths)
        starts = torch.repeat_interleave(torch.tensor(self.offsets[:-1]), lengths)
        return (torch.arange(self.num_tokens) - starts).to(device, non_blocking=True)

    def cumulative(self, device: torch.device) -> Tensor:
        """`offsets` as int32 on the device, as variable-length kernels want them, [N + 1]."""
        return torch.tensor(self.offsets, dtype=torch.int32).to(device, non_blocking=True)


@dataclass(frozen=True)
class Visibility:
    """Which keys a query at position i may see: i - left .. i + right of its own text. None is without limit."""

    left: int | None = None
    right: int | None = None

    def mask(self, length: int, device: torch.device) -> Tensor | None:
        """[length, length], true where query (row) may see key (column); None where every pair may."""
        limits_left = self.left is not None and self.left < length - 1
        limits_right = self.right is not None and self.right < length - 1
        if not limits_left and not limits_right:
            return None
        position = torch.arange(length, device=device)
        distance = position[None, :] - position[:, None]  # > 0: the key comes after the query
        allowed = torch.ones(length, length, dtype=torch.bool, device=device)
        if limits_left:
            allowed &= distance >= -self.left  # type: ignore[operator]
        if limits_right:
            allowed &= distance <= self.right  # type: ignore[operator]
        return allowed
