"""What the core promises beside its numbers: any block size, linear memory, three products, modifiers that plug in."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from embedtrain.losses import contrast as core
from embedtrain.losses.contrast import Tile, contrast
from embedtrain.losses.formulas import BlockRows, each_joint
from embedtrain.losses.modifiers.hardness import HardnessWeight
from embedtrain.losses.modifiers.margin import FalseNegativeFilter
from tests.helpers.batches import aligned_batch, random_batch, with_leaves

ALL = ("q2d", "d2q", "q2q", "d2d")
MODIFIERS = (FalseNegativeFilter(absolute=0.1), HardnessWeight(alpha=5.0, negatives="hard"))


def run(batch, terms=ALL, scale=5.0, **options):
    scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    sums = contrast(batch, scale=scale, terms=terms, formula=each_joint, **options)
    found = torch.autograd.grad(sums.loss, [batch.queries.values, batch.documents.values, scale])
    return sums, found


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives out, in forward and backward."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return result


class MatrixProducts(TorchDispatchMode):
    """Multiplications in matrix products (torch's own counter leaves out the in-place ones)."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "bmm"):
            left, right = args[-2:]
            self.count += left.numel() * right.shape[-1]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("modifiers", [(), MODIFIERS], ids=["plain", "modified"])
@pytest.mark.parametrize("tile_bytes", [1, 1000, 3000, 1 << 20])
def test_the_size_of_a_block_changes_nothing(tile_bytes, modifiers):
    batch = random_batch(1, queries=9, texts=8, contents=20)
    sums, found = run(batch, modifiers=modifiers)
    other, others = run(with_leaves(batch), modifiers=modifiers, tile_bytes=tile_bytes)
    for name in core.Sums.__slots__:
        torch.testing.assert_close(getattr(other, name), getattr(sums, name))
    torch.testing.assert_close(others, found)


def test_the_size_of_a_group_changes_nothing_without_in_batch_negatives(monkeypatch):
    batch = random_batch(2, queries=9, negatives=(0, 3))
    first, found = run(batch, ("q2d",), hard_only=True)
    monkeypatch.setattr(core, "HARD_ONLY_QUERIES", 2)
    second, others = run(with_leaves(batch), ("q2d",), hard_only=True)
    torch.testing.assert_close(second.loss, first.loss)
    torch.testing.assert_close(others, found)


@pytest.mark.parametrize("modifiers", [(), MODIFIERS], ids=["plain", "modified"])
def test_no_tensor_grows_with_queries_times_documents(modifiers):
    dim, tile_bytes, largest = 8, 8 << 10, {}
    for queries in (64, 256):
        batch = aligned_batch(queries=queries, hard=1, dim=dim, dtype=torch.float32)
        with LargestTensor() as seen:
            run(batch, tile_bytes=tile_bytes, modifiers=modifiers)
        largest[queries] = seen.bytes
        embeddings = 2 * queries * dim * 4
        one_query = sum((queries, queries, 2 * queries, 2 * queries)) * 4  # a block is never less
        # lists of ids are int64: a few numbers for each text, and for each row of a block
        assert seen.bytes <= max(embeddings, tile_bytes + one_query, 2 * queries * 8 * 3)
    assert largest[256] < 256 * 512 * 4 / 8  # the matrix that must not be
    assert largest[256] <= 4 * largest[64]


@pytest.mark.parametrize("terms", [("q2d",), ("q2d", "d2q"), ALL])
def test_three_matrix_products_for_each_term(terms):
    queries, documents, dim = 64, 128, 16
    batch = aligned_batch(queries=queries, hard=1, dim=dim)
    width = {"q": queries, "d": documents}
    product = sum(queries * width[term[2]] * dim for term in terms)
    with MatrixProducts() as forward_and_backward:
        run(batch, terms, tile_bytes=5000)
    assert forward_and_backward.count == 3 * product
    with MatrixProducts() as forward, torch.no_grad():
        contrast(batch, scale=torch.tensor(5.0), terms=terms, formula=each_joint)
    assert forward.count == product


def test_no_gradient_where_none_is_wanted():
    batch = random_batch(3)
    with torch.no_grad():
        loss = contrast(batch, scale=torch.tensor(5.0), terms=ALL, formula=each_joint).loss
    assert not loss.requires_grad
    fixed = with_leaves(batch)
    fixed.documents.values.requires_grad_(False)
    sums = contrast(fixed, scale=torch.tensor(5.0), terms=ALL, formula=each_joint)
    sums.loss.backward()
    torch.testing.assert_close(fixed.queries.values.grad, run(batch)[1][0])
    assert fixed.documents.values.grad is None


def test_the_gradient_is_scaled_by_what_comes_in_and_can_be_asked_for_twice():
    batch = random_batch(4)
    loss = 3 * contrast(batch, scale=torch.tensor(5.0), terms=ALL, formula=each_joint).loss
    first = torch.autograd.grad(loss, batch.documents.values, retain_graph=True)[0]
    second = torch.autograd.grad(loss, batch.documents.values)[0]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, 3 * run(with_leaves(batch))[1][1])


# -- what later losses put on the core: each a few lines, none a special case -------------------------------------------


def test_a_formula_may_weigh_rows_or_leave_positives_out():
    """Focal weight (1 - p)^gamma on each query, and a softmax without the positive (decoupled), by autograd on rows."""

    def focal(rows: BlockRows) -> torch.Tensor:
        loss = torch.logaddexp(rows.positive, rows.per_pair("q2d")) - rows.positive
        return rows.pairs.mean((1 - torch.exp(-loss.detach())) ** 0.5 * loss)

    def decoupled(rows: BlockRows) -> torch.Tensor:
        return rows.pairs.mean(rows.per_pair("q2d") - rows.positive)

    batch = aligned_batch(hard=0)
    logits = batch.queries.values @ batch.documents.values.T * 5
    away = logits.masked_fill(torch.eye(6, dtype=torch.bool), -math.inf)
    cross_entropy = torch.logsumexp(logits, 1) - logits.diagonal()
    expected = {
        focal: ((1 - torch.exp(-cross_entropy.detach())) ** 0.5 * cross_entropy).sum(),
        decoupled: (torch.logsumexp(away, 1) - logits.diagonal()).sum(),
    }
    for formula, wanted in expected.items():
        other = with_leaves(batch)
        loss = contrast(other, scale=torch.tensor(5.0), terms=["q2d"], formula=formula).loss
        torch.testing.assert_close(loss, wanted)
        gradient = torch.autograd.grad(wanted, batch.documents.values, retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(loss, other.documents.values)[0], gradient)


def test_a_modifier_sees_whole_rows_and_who_they_are():
    """The k hardest negatives alone need the whole row; a guide model needs to know which texts the rows are."""
    batch = aligned_batch(hard=0)
    guide_queries, guide_documents = (torch.randn(6, 3, dtype=torch.float64) for _ in range(2))

    def hardest_two(tile: Tile) -> int:
        weaker = tile.logits < tile.logits.topk(2).values[:, -1:]
        tile.logits.masked_fill_(weaker, -math.inf)
        return 0

    def guide(tile: Tile) -> int:
        similarity = guide_queries[tile.rows] @ guide_documents.T
        limit = (guide_queries[tile.rows] * guide_documents[tile.rows]).sum(1, keepdim=True)
        tile.logits.masked_fill_(similarity > limit, -math.inf)
        return 0

    logits = batch.queries.values @ batch.documents.values.T * 5
    away = logits.masked_fill(torch.eye(6, dtype=torch.bool), -math.inf)
    guided = guide_queries @ guide_documents.T
    masks = {hardest_two: away < away.topk(2).values[:, -1:], guide: guided > guided.diagonal()[:, None]}
    for modifier, mask in masks.items():
        kept = away.masked_fill(mask, -math.inf)
        wanted = (torch.logaddexp(logits.diagonal(), torch.logsumexp(kept, 1)) - logits.diagonal()).sum()
        found = contrast(
            with_leaves(batch),
            scale=torch.tensor(5.0),
            terms=["q2d"],
            formula=each_joint,
            modifiers=[modifier],
            tile_bytes=150,
        )
        torch.testing.assert_close(found.loss, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("modifiers", [(), MODIFIERS], ids=["plain", "modified"])
def test_cuda_gives_the_numbers_of_the_cpu(modifiers):
    batch = random_batch(5, queries=40, dim=16, texts=30, contents=60)
    sums, found = run(batch, modifiers=modifiers)
    moved = with_leaves(batch)
    for side in (moved.queries, moved.documents):
        object.__setattr__(side, "values", side.values.detach().cuda().requires_grad_())
    for relation in (batch.relation, batch.relation.to("cuda")):
        object.__setattr__(moved, "relation", relation)
        other, others = run(moved, modifiers=modifiers, tile_bytes=4000)
        torch.testing.assert_close(other.loss.cpu(), sums.loss)
        torch.testing.assert_close([x.cpu() for x in others], list(found))
