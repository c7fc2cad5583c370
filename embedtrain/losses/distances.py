"""Distances and lengths of dense vectors, with finite gradients where they are 0."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from embedtrain.errors import ConfigError

# cosine: 1 - cosine, 0 .. 2. On unit vectors squared_euclidean is twice that, and euclidean its root.
Distance = Literal["euclidean", "squared_euclidean", "cosine"]


def check_distance(distance: str) -> None:
    if distance not in get_args(Distance):
        raise ConfigError(f"loss.distance: expected one of {', '.join(get_args(Distance))}, got {distance!r}.")


def paired(x: Tensor, y: Tensor, distance: Distance) -> Tensor:
    """Of x[p] and y[p], [P]."""
    if distance == "cosine":
        return 1 - (F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(1)
    squared = (x - y).square().sum(1)
    return squared if distance == "squared_euclidean" else root(squared)


def between(x: Tensor, y: Tensor, distance: Distance) -> Tensor:
    """Of each of x [R, E] and each of y [N, E], by one matrix product, [R, N]."""
    if distance == "cosine":
        return 1 - F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    squared = torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp(min=0)
    return squared if distance == "squared_euclidean" else root(squared)


def root(squared: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0, where it would be infinite."""
    some = squared > 0
    return torch.where(some, torch.where(some, squared, 1.0).sqrt(), 0.0)
