"""Regularisers against loops over texts and dimensions, and against sentence-transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.regularisers import uniformity_alignment as ua
from embedtrain.losses.regularisers.flops import Flops
from embedtrain.losses.regularisers.norm import Norm
from embedtrain.losses.regularisers.spread_out import SpreadOut, second_moment
from embedtrain.losses.regularisers.uniformity_alignment import UniformityAlignment, uniformity
from embedtrain.types import EmbeddingBatch, Needs, needs_of
from tests.helpers.batches import aligned_batch, permute_documents, random_batch, with_leaves
from tests.losses.ranking.batches import assert_same, assert_shares_add_up, gradients


def free(batch: EmbeddingBatch, scale: float = 1.7) -> EmbeddingBatch:
    """Embeddings that are not normalised, with some numbers at 0."""

    def stretched(x: Tensor) -> Tensor:
        lengths = torch.linspace(0.3, scale, len(x), dtype=x.dtype)[:, None]
        return torch.where(x.detach() > -0.3, x.detach() * lengths, 0.0)

    loose = replace(
        batch,
        queries=replace(batch.queries, values=stretched(batch.queries.values), normalized=False),
        documents=replace(batch.documents, values=stretched(batch.documents.values), normalized=False),
    )
    return with_leaves(loose)


# Fewer texts than dimensions, more texts than dimensions; queries without positives; the same, not normalised.
BATCHES = [
    random_batch(1, dim=40),
    random_batch(2, queries=9, dim=5, positives=(0, 2)),
    free(random_batch(3, queries=7, dim=6)),
]
FREE = BATCHES[2]


def positives_of(batch: EmbeddingBatch) -> list[int]:
    return [d for d in range(batch.relation.num_documents) if batch.relation.is_positive[d]]


def sides(batch: EmbeddingBatch, documents: str) -> list[list[Tensor]]:
    """Vectors of queries, and of documents."""
    chosen = positives_of(batch) if documents == "positives" else range(batch.relation.num_documents)
    return [list(batch.queries.values), [batch.documents.values[d] for d in chosen]]


def spread_loop(batch: EmbeddingBatch, mean_weight=0.0, hinge=False, documents="positives") -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for vectors in sides(batch, documents):
        n = len(vectors)
        products = [vectors[i] @ vectors[j] for i in range(n) for j in range(n) if i != j]
        second = sum(p**2 for p in products) / len(products)
        if hinge:
            second = torch.clamp(second - 1 / len(vectors[0]), min=0)
        total = total + second + mean_weight * (sum(products) / len(products)) ** 2
    return total


def flops_loop(batch: EmbeddingBatch, kind: str, query_weight: float, document_weight: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for weight, vectors in zip((query_weight, document_weight), sides(batch, "all"), strict=True):
        for j in range(len(vectors[0])):
            use = sum(abs(v[j]) for v in vectors) / len(vectors)
            total = total + weight * (use**2 if kind == "flops" else use)
    return total


def uniformity_alignment_loop(
    batch: EmbeddingBatch, alignment_weight=1.0, uniformity_weight=1.0, power=2.0, sharpness=2.0
) -> Tensor:
    pairs = [(batch.queries.values[batch.relation.owner[d]], batch.documents.values[d]) for d in positives_of(batch)]
    alignment = sum((q - p).norm() ** power for q, p in pairs) / len(pairs)
    spread = []
    for vectors in sides(batch, "positives"):
        n = len(vectors)
        kernel = [
            torch.exp(-sharpness * ((vectors[i] - vectors[j]) ** 2).sum()) for i in range(n) for j in range(i + 1, n)
        ]
        spread.append(torch.log(sum(kernel) / len(kernel)))
    return alignment_weight * alignment + uniformity_weight * sum(spread) / 2


def norm_loop(batch: EmbeddingBatch, p: int, target: float, documents: str) -> Tensor:
    means = []
    for vectors in sides(batch, documents):
        norms = [abs(v).sum() if p == 1 else (v**2).sum().sqrt() for v in vectors]
        means.append(sum((n - target) ** 2 for n in norms) / len(norms))
    return sum(means) / 2


SPREAD = [
    {},
    {"documents": "all"},
    {"mean_weight": 1.0, "hinge": True},
    {"mean_weight": 0.5, "documents": "all"},
]
UNIFORM = [
    {},
    {"alignment_weight": 0.0},
    {"uniformity_weight": 0.0, "power": 1.0},
    {"alignment_weight": 0.98, "uniformity_weight": 0.96, "sharpness": 3.0, "power": 3.0},
]
LOSSES: list[nn.Module] = [
    *(SpreadOut(**s) for s in SPREAD),
    *(UniformityAlignment(**s) for s in UNIFORM),
    Flops(warmup_steps=10),
    Flops(kind="l1"),
    Norm(p=1),
    Norm(p=1, target=2.0, documents="positives"),
]


def name(value: object) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else type(value).__name__


@pytest.mark.parametrize("settings_", SPREAD, ids=name)
@pytest.mark.parametrize("batch", BATCHES, ids=["wide", "long", "free"])
def test_spread_out_is_that_of_a_loop_over_pairs(batch, settings_):
    loss = SpreadOut(**settings_)
    assert_same(batch, lambda b: loss(b).loss, lambda b: spread_loop(b, **settings_))


@pytest.mark.parametrize("settings_", UNIFORM, ids=name)
@pytest.mark.parametrize("batch", BATCHES, ids=["wide", "long", "free"])
@pytest.mark.parametrize("block", [1, 30, ua.BLOCK])
def test_uniformity_and_alignment_are_those_of_a_loop_over_pairs(batch, settings_, block, monkeypatch):
    monkeypatch.setattr(ua, "BLOCK", block)
    loss = UniformityAlignment(**settings_)
    assert_same(batch, lambda b: loss(b).loss, lambda b: uniformity_alignment_loop(b, **settings_))


@pytest.mark.parametrize("kind", ["flops", "l1"])
@pytest.mark.parametrize("batch", BATCHES, ids=["wide", "long", "free"])
def test_flops_is_that_of_a_loop_over_dimensions(batch, kind):
    loss = Flops(kind=kind, query_weight=0.5, document_weight=0.4, warmup_steps=0)
    assert_same(batch, lambda b: loss(b).loss, lambda b: flops_loop(b, kind, 0.5, 0.4))


@pytest.mark.parametrize("documents", ["all", "positives"])
@pytest.mark.parametrize("target", [None, 0.8])
@pytest.mark.parametrize(("p", "batch"), [(1, BATCHES[0]), (1, FREE), (2, FREE)])
def test_norm_is_that_of_a_loop_over_texts(batch, p, target, documents):
    loss = Norm(p=p, target=target, documents=documents)
    assert_same(batch, lambda b: loss(b).loss, lambda b: norm_loop(b, p, target or 0.0, documents))


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_shares_of_ranks_add_up(loss):
    for batch in BATCHES:
        assert_shares_add_up(batch, loss)


def test_shares_of_the_length_add_up():
    assert_shares_add_up(FREE, Norm(p=2, target=1.0))


# -- against others ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [aligned_batch(hard=0, dim=40), aligned_batch(hard=0, queries=12, dim=5)])
def test_spread_out_is_that_of_sentence_transformers(batch):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    criterion = losses.GlobalOrthogonalRegularizationLoss(nn.Identity(), mean_weight=0.3, aggregation="sum")

    def reference(b: EmbeddingBatch) -> Tensor:
        unit = [nn.functional.normalize(x, dim=1) for x in (b.queries.values, b.documents.values)]
        return sum(criterion.compute_loss_from_embeddings(unit).values())

    def mine(b: EmbeddingBatch) -> Tensor:  # it normalises once more: so do both here, for tangent gradients
        sides_ = [replace(x, values=nn.functional.normalize(x.values, dim=1)) for x in (b.queries, b.documents)]
        return SpreadOut(mean_weight=0.3, hinge=True)(replace(b, queries=sides_[0], documents=sides_[1])).loss

    assert_same(batch, mine, reference, rtol=1e-6)


def test_flops_is_that_of_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.sparse_encoder.losses")
    criterion = losses.FlopsLoss(nn.Identity())

    def reference(b: EmbeddingBatch) -> Tensor:
        return 0.5 * criterion.compute_loss_from_embeddings(b.queries.values.abs()) + (
            0.4 * criterion.compute_loss_from_embeddings(b.documents.values.abs())
        )

    assert_same(FREE, lambda b: Flops(warmup_steps=0)(b).loss, reference, rtol=1e-6)


def test_uniformity_is_that_of_the_papers_four_lines():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log()
    torch.testing.assert_close(uniformity(x, 2.0), expected, rtol=1e-12, atol=0)


# -- schedule and metrics ----------------------------------------------------------------------------------------------


def test_the_weight_of_flops_rises_with_the_square_of_the_step_and_stays():
    loss = Flops(warmup_steps=10)
    full = Flops(warmup_steps=0)(FREE).loss.item()
    for step, part in ((0, 0.01), (4, 0.25), (9, 1.0), (10, 1.0), (5000, 1.0)):
        output = loss(replace(FREE, step=step))
        assert output.loss.item() == pytest.approx(part * full)
        assert output.metrics["warmup"].item() == pytest.approx(part)


def test_values_are_logged_without_weights():
    metrics = Flops(query_weight=7.0, warmup_steps=100)(FREE).metrics
    assert metrics["flops_queries"].item() == pytest.approx(flops_loop(FREE, "flops", 1.0, 0.0).item())
    assert metrics["flops_documents"].item() == pytest.approx(flops_loop(FREE, "flops", 0.0, 1.0).item())
    used = (FREE.documents.values != 0).double().sum(1).mean().item()
    assert metrics["active_document_dimensions"].item() == pytest.approx(used)
    assert 0 < used < FREE.documents.dim
    metrics = UniformityAlignment(alignment_weight=5.0, uniformity_weight=3.0)(FREE).metrics
    assert metrics["alignment"].item() == pytest.approx(uniformity_alignment_loop(FREE, 1.0, 0.0).item())
    assert metrics["uniformity"].item() == pytest.approx(uniformity_alignment_loop(FREE, 0.0, 1.0).item())
    metrics = SpreadOut()(FREE).metrics
    assert (metrics["spread_queries"] + metrics["spread_documents"]).item() == pytest.approx(spread_loop(FREE).item())
    metrics = Norm(p=2, target=3.0)(FREE).metrics
    assert metrics["norm_queries"].item() == pytest.approx(FREE.queries.values.norm(dim=1).mean().item())


# -- properties --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(2, 12), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_either_product_gives_the_second_moment(seed, texts, dim):
    """The smaller is taken; a few columns of zeros make it the other one."""
    x = torch.randn(texts, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wide = nn.functional.pad(x, (0, 20))
    torch.testing.assert_close(second_moment(x), second_moment(wide), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [SpreadOut(), UniformityAlignment(), Flops(), Norm(p=1)], ids=name)
def test_the_order_of_the_documents_does_not_count(loss):
    batch = BATCHES[1]
    order = torch.randperm(batch.relation.num_documents, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(permute_documents(batch, order)).loss, loss(batch).loss, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", [SpreadOut(), UniformityAlignment()], ids=name)
def test_steps_against_the_gradient_spread_texts_that_are_alike(loss):
    batch = random_batch(0, queries=8, dim=16, spread=0.2)
    start = spread_loop(batch).item()
    for _ in range(40):
        batch = with_leaves(batch)
        found = gradients(batch, loss(batch).loss)
        q, d = (
            nn.functional.normalize(x.values - 0.2 * g / g.norm(), dim=1).detach()
            for x, g in zip((batch.queries, batch.documents), found, strict=True)
        )
        batch = replace(batch, queries=replace(batch.queries, values=q), documents=replace(batch.documents, values=d))
    assert spread_loop(batch).item() < 0.5 * start


# -- views and bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SpreadOut, UniformityAlignment, Flops, Norm])
def test_a_view_is_read_in_place_of_the_embedding(kind):
    outer = random_batch(3, queries=7, dim=9)
    batch = replace(
        outer,
        queries=replace(outer.queries, views={"sparse": FREE.queries}),
        documents=replace(outer.documents, views={"sparse": FREE.documents}),
    )
    loss: Callable = kind(view="sparse")
    torch.testing.assert_close(loss(batch).loss, kind()(replace(FREE, relation=outer.relation)).loss)
    assert needs_of(loss) == Needs(views=("sparse",))
    assert needs_of(kind(view="layer_6")) == Needs(layers=(6,))
    assert needs_of(kind()) == Needs()
    with pytest.raises(ConfigError, match="reads the view 'sparse'"):
        loss(outer)


@pytest.mark.parametrize("kind", [SpreadOut, UniformityAlignment, Flops, Norm])
def test_one_vector_per_token_is_refused(kind):
    offsets = torch.arange(len(FREE.queries) + 1)
    with pytest.raises(ConfigError, match="'the embedding' has one per token"):
        kind()(replace(FREE, queries=replace(FREE.queries, offsets=offsets)))


def test_the_length_of_normalised_embeddings_is_refused():
    with pytest.raises(ConfigError, match=r"loss.p: these embeddings are normalised.*use p: 1"):
        Norm(p=2)(BATCHES[0])


def test_a_single_query_has_nothing_to_be_spread_from():
    batch = random_batch(queries=1, positives=(1, 1), negatives=(0, 0))
    for loss in (SpreadOut(mean_weight=1.0), UniformityAlignment(alignment_weight=0.0)):
        output = loss(batch)
        assert output.loss.item() == 0
        assert all(not gradient.any() for gradient in gradients(batch, output.loss))


def test_equal_vectors_and_vectors_of_zeros_have_finite_gradients():
    batch = with_leaves(replace(FREE, documents=replace(FREE.documents, values=FREE.documents.values.detach() * 0)))
    for loss in (SpreadOut(), UniformityAlignment(power=1.0), Flops(), Norm(p=2), Norm(p=2, target=1.0)):
        assert all(torch.isfinite(gradient).all() for gradient in gradients(batch, loss(batch).loss))


def test_uniformity_of_distant_vectors_does_not_underflow():
    x = torch.tensor([[100.0, 0.0], [0.0, 100.0], [-100.0, 0.0]], requires_grad=True)
    assert uniformity(x, 2.0).item() == pytest.approx(-40000 + math.log(2 / 3))


@pytest.mark.parametrize(
    ("kind", "settings_", "message"),
    [
        (SpreadOut, {"mean_weight": -1.0}, "loss.mean_weight"),
        (SpreadOut, {"documents": "negatives"}, "loss.documents: expected all or positives"),
        (UniformityAlignment, {"alignment_weight": -1.0}, "loss.alignment_weight"),
        (UniformityAlignment, {"uniformity_weight": -1.0}, "loss.uniformity_weight"),
        (UniformityAlignment, {"alignment_weight": 0.0, "uniformity_weight": 0.0}, "nothing is left to train"),
        (UniformityAlignment, {"power": 0.5}, "loss.power"),
        (UniformityAlignment, {"sharpness": 0.0}, "loss.sharpness"),
        (Flops, {"query_weight": -0.1}, "loss.query_weight"),
        (Flops, {"document_weight": -0.1}, "loss.document_weight"),
        (Flops, {"warmup_steps": -1}, "loss.warmup_steps"),
        (Flops, {"kind": "l2"}, "loss.kind: expected flops or l1"),
        (Norm, {"p": 3}, "loss.p: expected 1"),
        (Norm, {"target": -1.0}, "loss.target"),
        (Norm, {"documents": "none"}, "loss.documents"),
    ],
)
def test_bad_settings_name_the_key(kind, settings_, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings_)
