"""Spaces against loops over pairs of texts and tokens, and through the contrastive core against autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embedtrain.losses import similarity
from embedtrain.losses.contrast import TERMS, contrast
from embedtrain.losses.formulas import FORMULAS
from embedtrain.losses.similarity import DenseSpace, MaxSimSpace, space_of
from embedtrain.types import EmbeddingBatch, Embeddings
from tests.helpers.batches import random_batch

VIEWS = {"embedding": 1.0, "sparse": 0.3, "tokens": 0.7}


def ragged(generator: torch.Generator, texts: int, dim: int, shortest: int) -> Embeddings:
    lengths = torch.randint(shortest, 6, (texts,), generator=generator)
    values = torch.randn(int(lengths.sum()), dim, generator=generator, dtype=torch.float64)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Embeddings(torch.nn.functional.normalize(values, dim=1).requires_grad_(), offsets=offsets)


def batch_with_views(seed: int = 0, shortest: int = 0) -> EmbeddingBatch:
    batch = random_batch(seed, queries=7, contents=14, texts=6)
    generator = torch.Generator().manual_seed(seed)

    def with_views(embeddings: Embeddings) -> Embeddings:
        sparse = torch.rand(len(embeddings), 9, generator=generator, dtype=torch.float64).requires_grad_()
        tokens = ragged(generator, len(embeddings), 4, shortest)
        return replace(embeddings, views={"sparse": Embeddings(sparse, normalized=False), "tokens": tokens})

    return replace(batch, queries=with_views(batch.queries), documents=with_views(batch.documents))


def maxsim(left: Embeddings, i: int, right: Embeddings, j: int, mean: bool) -> Tensor:
    a = left.values[left.offsets[i] : left.offsets[i + 1]]
    b = right.values[right.offsets[j] : right.offsets[j + 1]]
    if len(a) == 0 or len(b) == 0:
        return left.values.new_zeros(())
    best = torch.stack([torch.stack([x @ y for y in b]).max() for x in a])
    return best.mean() if mean else best.sum()


def all_similarities(batch: EmbeddingBatch, term: str, views: dict[str, float], mean: bool) -> Tensor:
    """By a loop over texts; in d2q the query's tokens still do the looking."""

    def one(name: str, i: int, j: int) -> Tensor:
        seen = batch if name == "embedding" else batch.view(name)
        sides = {"q": seen.queries, "d": seen.documents}
        left, right = sides[term[0]], sides[term[2]]
        if left.offsets is None:
            return left.values[i] @ right.values[j]
        return maxsim(right, j, left, i, mean) if term == "d2q" else maxsim(left, i, right, j, mean)

    rows, columns = (len({"q": batch.queries, "d": batch.documents}[kind]) for kind in (term[0], term[2]))
    return torch.stack(
        [
            torch.stack([sum(weight * one(name, i, j) for name, weight in views.items()) for j in range(columns)])
            for i in range(rows)
        ]
    )


def leaves(batch: EmbeddingBatch) -> list[Tensor]:
    return [*batch.queries.tensors(), *batch.documents.tensors()]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("views", [{"embedding": 1.0}, {"tokens": 1.0}, VIEWS], ids=["dense", "maxsim", "sum"])
@pytest.mark.parametrize("token_bytes", [1, 32 << 20])
def test_tiles_and_their_gradients_are_those_of_a_loop(term, views, mean, token_bytes, monkeypatch):
    monkeypatch.setattr(similarity, "TOKEN_TILE_BYTES", token_bytes)
    batch = batch_with_views()
    space = space_of(batch, views, "mean" if mean else "sum")
    expected = all_similarities(batch, term, views, mean)
    rows, columns = torch.tensor([4, 1, 5]), torch.tensor([0, 3, 6, 2])
    scale = torch.tensor(3.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    factor = torch.rand(3, generator=generator, dtype=torch.float64)

    tile, saved = space.tile(term, rows, columns, scale)
    torch.testing.assert_close(tile, 3 * expected[rows][:, columns].detach(), rtol=1e-12, atol=1e-12)
    everything, saved_all = space.tile(term, slice(1, 4), None, scale)
    torch.testing.assert_close(everything, 3 * expected[1:4].detach(), rtol=1e-12, atol=1e-12)

    space.tile_backward(term, rows, columns, saved, weights.clone(), factor)
    space.tile_backward(term, slice(1, 4), None, saved_all, torch.ones_like(everything), factor)
    total = (weights * factor[:, None] * expected[rows][:, columns]).sum() + (factor[:, None] * expected[1:4]).sum()
    wanted = torch.autograd.grad(total, space.inputs, allow_unused=True, materialize_grads=True)
    for found, want in zip(space.gradients(), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(space.homogeneous(), total.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("views", [{"embedding": 1.0}, {"tokens": 1.0}, VIEWS], ids=["dense", "maxsim", "sum"])
def test_pairs_and_their_gradients_are_those_of_a_loop(views, mean):
    batch = batch_with_views(1)
    space = space_of(batch, views, "mean" if mean else "sum")
    queries, documents = torch.tensor([0, 0, 3, 6, 2]), torch.tensor([1, 4, 4, 0, 5])
    expected = all_similarities(batch, "q2d", views, mean)[queries, documents]
    torch.testing.assert_close(space.pairs(queries, documents), expected.detach(), rtol=1e-12, atol=1e-12)
    gradient = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    space.pairs_backward(queries, documents, gradient)
    for found, want in zip(
        space.gradients(), torch.autograd.grad((gradient * expected).sum(), space.inputs), strict=True
    ):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tile_bytes", [1, None])
@pytest.mark.parametrize("views", [{"tokens": 1.0}, VIEWS], ids=["maxsim", "sum"])
def test_the_core_streams_any_space_as_it_does_inner_products(views, tile_bytes):
    """The same similarities, once as a space and once as inner products with unit vectors."""
    batch = batch_with_views(2, shortest=1)
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    terms, formula = ("q2d", "d2q"), FORMULAS["each", "joint"]
    sums = contrast(
        batch, scale=1 / temperature, terms=terms, formula=formula, space=space_of(batch, views), tile_bytes=tile_bytes
    )
    inputs = [*leaves(batch), temperature]
    found = torch.autograd.grad(sums.loss, inputs, allow_unused=True, materialize_grads=True)

    similar = all_similarities(batch, "q2d", views, mean=False)
    flat = EmbeddingBatch(
        Embeddings(similar), Embeddings(torch.eye(len(batch.documents), dtype=torch.float64)), batch.relation
    )
    expected = contrast(flat, scale=1 / temperature, terms=terms, formula=formula)
    wanted = torch.autograd.grad(expected.loss, inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(sums.loss, expected.loss, rtol=1e-10, atol=1e-12)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_the_best_token_is_kept_and_not_the_products():
    """Q x D x T x T numbers at once would be 64 x 64 x 30 x 30 x 4 bytes = 14.7 MB; the bound here is 0.1 MB."""
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(64 * 30, 4, generator=generator) for _ in range(2)]
    offsets = torch.arange(0, 64 * 30 + 1, 30)
    space = MaxSimSpace(tokens[0], offsets, tokens[1], offsets)
    largest = 0
    original = similarity.MaxSimSpace._groups

    def watched(self, side, looking):
        nonlocal largest
        for texts, index in original(self, side, looking):
            largest = max(largest, looking * index.numel() * 4)
            yield texts, index

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "TOKEN_TILE_BYTES", 100_000)
        patch.setattr(similarity.MaxSimSpace, "_groups", watched)
        tile, saved = space.tile("q2d", slice(0, 8), None, torch.tensor(1.0))
    assert tile.shape == (8, 64)
    assert saved.dtype == torch.int16
    assert saved.shape == (8 * 30, 64)
    assert 0 < largest <= 100_000


def test_half_precision_is_compared_in_full():
    values = torch.randn(3, 4).bfloat16()
    assert DenseSpace(values, values).tile("q2d", slice(0, 3), None, torch.tensor(1.0))[0].dtype == torch.float32
