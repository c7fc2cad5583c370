"""Losses compute in fp32 whatever autocast says, and in fp64 for fp64 embeddings: at temperature 0.01 bf16 is off by 0.2."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from embedtrain.types import EmbeddingBatch, LossOutput


def full(x: Tensor) -> Tensor:
    """In fp32, or as it is where it is fp64."""
    return x if x.dtype == torch.float64 else x.float()


def in_full_precision(
    forward: Callable[[Any, EmbeddingBatch], LossOutput],
) -> Callable[[Any, EmbeddingBatch], LossOutput]:
    """For the `forward` of a loss: autocast is off inside, and embeddings and views arrive in fp32 or fp64."""

    @functools.wraps(forward)
    def wrapped(self: Any, batch: EmbeddingBatch) -> LossOutput:
        with torch.autocast(batch.queries.values.device.type, enabled=False):
            return forward(self, replace(batch, queries=batch.queries.map(full), documents=batch.documents.map(full)))

    return wrapped
