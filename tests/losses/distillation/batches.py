"""Random batches with a teacher, scores in the rows, or both; and what W ranks would make of a loss on them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from embedtrain.types import EmbeddingBatch, Embeddings
from tests.helpers.batches import random_batch, with_leaves


def taught_batch(seed: int = 0, *, teacher_dim: int = 7, scale: float = 1.0, **options) -> EmbeddingBatch:
    """A random batch with scores (`scale` times normal) and a teacher called `teacher`; options as of `random_batch`."""
    batch = random_batch(seed, **options)
    draw = torch.Generator().manual_seed(seed + 1000)

    def vectors(count: int) -> Embeddings:
        values = torch.randn(count, teacher_dim, generator=draw, dtype=torch.float64)
        return Embeddings(nn.functional.normalize(values, dim=1).to(batch.queries.values.dtype))

    scores = scale * torch.randn(len(batch.documents), generator=draw, dtype=torch.float64)
    batch = replace(batch, relation=replace(batch.relation, scores=scores))
    taught = replace(batch, queries=vectors(len(batch.queries)), documents=vectors(len(batch.documents)))
    return replace(batch, teachers={"teacher": taught})


def gradients(batch: EmbeddingBatch, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of queries and documents; zeros where the value does not read them."""
    inputs = [batch.queries.values, batch.documents.values]
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))  # type: ignore[return-value]


def on_ranks(loss: nn.Module, batch: EmbeddingBatch, edges: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of ranks whose rows end at `edges`, added up."""
    parts = []
    for start, stop in zip((0, *edges[:-1]), edges, strict=True):
        rows = slice(start, stop)
        own = with_leaves(
            batch, rows=rows, teachers={name: replace(taught, rows=rows) for name, taught in batch.teachers.items()}
        )
        value = loss(own).loss
        parts.append((value.detach(), *gradients(own, value)))
    return tuple(torch.stack(part).sum(0) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def own_documents(batch: EmbeddingBatch, query: int) -> list[int]:
    return [d for d, owner in enumerate(batch.relation.owner.tolist()) if owner == query]
