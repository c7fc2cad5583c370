"""Batches with scores and labels, cut into ranks; and the gradients of a loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from embedtrain.types import EmbeddingBatch
from tests.helpers.batches import annotated, random_batch, with_leaves

Loss = Callable[[EmbeddingBatch], Tensor]


def graded_batch(seed: int = 0, *, classes: int = 3, levels: int | None = None, **settings) -> EmbeddingBatch:
    """Ragged candidates with scores and classes (`annotated`)."""
    return annotated(random_batch(seed, **settings), classes=classes, levels=levels)


def pairs_of(batch: EmbeddingBatch, score: Sequence[float]) -> EmbeddingBatch:
    """The batch with these scores, one for each document."""
    return replace(batch, relation=replace(batch.relation, scores=torch.tensor(score, dtype=torch.float64)))


def gradients(batch: EmbeddingBatch, value: Tensor) -> list[Tensor]:
    wanted = [batch.queries.values, batch.documents.values]
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


def assert_same(batch: EmbeddingBatch, loss: Loss, reference: Loss, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Value and gradients of `loss` and of `reference`; and that there is something to compare."""
    mine, theirs = with_leaves(batch), with_leaves(batch)
    value, expected = loss(mine), reference(theirs)
    assert expected.abs() > 1e-6
    torch.testing.assert_close(value, expected.to(value), rtol=rtol, atol=atol)
    wanted = gradients(theirs, expected)
    assert sum(g.norm() for g in wanted) > 1e-6
    for found, gradient in zip(gradients(mine, value), wanted, strict=True):
        torch.testing.assert_close(found, gradient, rtol=rtol, atol=atol)


def assert_shares_add_up(batch: EmbeddingBatch, loss: torch.nn.Module) -> None:
    """Ranks with uneven slices, one of them without a query: values, metrics and gradients add up to those of one rank."""
    whole = with_leaves(batch)
    expected = loss(whole)
    wanted = gradients(whole, expected.loss)
    queries = batch.relation.num_queries
    for edges in ([0, 1, queries], [0, 2, 3, 3, queries]):
        parts = with_leaves(batch)
        outputs = [loss(replace(parts, rows=slice(a, b))) for a, b in itertools.pairwise(edges)]
        total = torch.stack([output.loss for output in outputs]).sum()
        torch.testing.assert_close(total, expected.loss, rtol=1e-10, atol=1e-13)
        for found, gradient in zip(gradients(parts, total), wanted, strict=True):
            torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
        for name, value in expected.metrics.items():
            torch.testing.assert_close(sum(o.metrics[name] for o in outputs), value, rtol=1e-9, atol=1e-12)
