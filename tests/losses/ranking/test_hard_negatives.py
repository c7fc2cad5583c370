"""Triplet and contrastive losses over what a row brings, against loops and sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.ranking.contrastive import Contrastive
from embedtrain.losses.ranking.triplet import Triplet
from embedtrain.types import EmbeddingBatch, Needs, needs_of
from tests.helpers.batches import aligned_batch, permute_documents, random_batch, with_leaves
from tests.losses.oracle import Kinds
from tests.losses.ranking.batches import assert_same, assert_shares_add_up, gradients, pairs_of
from tests.losses.ranking.test_labels import distance

# Without duplicates; with hard negatives that are known answers; with queries that bring nothing.
BATCHES = [
    random_batch(1, negatives=(1, 3)),
    random_batch(2, queries=7, texts=5, contents=9, spread=0.6),
    random_batch(3, queries=7, positives=(0, 2), negatives=(0, 2)),
]
DISTANCES = ("euclidean", "squared_euclidean", "cosine")


def triplet_loop(batch: EmbeddingBatch, margin: float, kind: str) -> Tensor:
    kinds, q, d = Kinds(batch.relation), batch.queries.values, batch.documents.values
    losses = []
    for query in range(kinds.num_queries):
        for n in range(kinds.num_documents):
            if kinds.kind(query, n) == "hard negative":
                for p in kinds.positives(query):
                    far, near = distance(q[query], d[n], kind), distance(q[query], d[p], kind)
                    losses.append(torch.clamp(near - far + margin, min=0))
    return sum(losses) / len(losses)


def labelled_pairs(batch: EmbeddingBatch, targets: str) -> list[tuple[int, int, float]]:
    """(query, document, target) of each pair."""
    if targets == "scores":
        return [(q, d, batch.relation.scores[d].item()) for d, q in enumerate(batch.relation.owner.tolist())]
    kinds = Kinds(batch.relation)
    found = [(q, d, kinds.kind(q, d)) for q in range(kinds.num_queries) for d in range(kinds.num_documents)]
    return [(q, d, float(kind == "positive")) for q, d, kind in found if kind in ("positive", "hard negative")]


def contrastive_loop(batch: EmbeddingBatch, margin=0.5, kind="cosine", targets="relation", mining="all") -> Tensor:
    pairs = [
        (distance(batch.queries.values[q], batch.documents.values[d], kind), y)
        for q, d, y in labelled_pairs(batch, targets)
    ]
    near, far = [s.item() for s, y in pairs if y == 1], [s.item() for s, y in pairs if y == 0]
    total = torch.zeros((), dtype=torch.float64)
    for s, y in pairs:
        if mining == "all" or (s > min(far) if y == 1 else s < max(near)):
            total = total + 0.5 * (y * s**2 + (1 - y) * torch.clamp(margin - s, min=0) ** 2)
    return total / len(pairs)


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("margin", [0.1, 1.0])
@pytest.mark.parametrize("batch", BATCHES, ids=["plain", "duplicates", "sparse"])
def test_triplets_are_those_of_a_loop(batch, margin, kind):
    loss = Triplet(margin=margin, distance=kind)
    assert_same(batch, lambda b: loss(b).loss, lambda b: triplet_loop(b, margin, kind))


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("mining", ["all", "hard"])
@pytest.mark.parametrize("batch", BATCHES, ids=["plain", "duplicates", "sparse"])
def test_pairs_are_those_of_a_loop(batch, mining, kind):
    loss = Contrastive(margin=0.9, distance=kind, mining=mining)
    assert_same(batch, lambda b: loss(b).loss, lambda b: contrastive_loop(b, 0.9, kind, mining=mining))
    total = Contrastive(margin=0.9, distance=kind, mining=mining, reduction="sum")(batch).loss
    torch.testing.assert_close(total, loss(batch).loss * len(labelled_pairs(batch, "relation")))


def test_scores_may_say_which_pairs_are_similar():
    batch = BATCHES[0]
    scores = torch.rand(batch.relation.num_documents, generator=torch.Generator().manual_seed(0)).tolist()
    loss = Contrastive(targets="scores")
    assert_same(pairs_of(batch, scores), lambda b: loss(b).loss, lambda b: contrastive_loop(b, targets="scores"))
    binary = pairs_of(batch, [float(s > 0.5) for s in scores])
    hard = Contrastive(targets="scores", mining="hard")
    assert_same(binary, lambda b: hard(b).loss, lambda b: contrastive_loop(b, targets="scores", mining="hard"))


@pytest.mark.parametrize(
    "loss",
    [Triplet(), Triplet(margin=1.0), Contrastive(), Contrastive(mining="hard"), Contrastive(reduction="sum")],
    ids=lambda loss: type(loss).__name__,
)
def test_shares_of_ranks_add_up(loss):
    for batch in BATCHES:
        assert_shares_add_up(batch, loss)


# -- against sentence-transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine", "euclidean"])
def test_triplet_is_that_of_sentence_transformers(kind):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    metric = getattr(losses.TripletDistanceMetric, kind.upper())
    criterion = losses.TripletLoss(torch.nn.Identity(), distance_metric=metric, triplet_margin=0.3)

    def reference(b: EmbeddingBatch) -> Tensor:
        positive, negative = b.documents.values.view(6, 2, -1).unbind(1)
        return criterion.compute_loss_from_embeddings([b.queries.values, positive, negative], None)

    loss = Triplet(margin=0.3, distance=kind)
    assert_same(aligned_batch(hard=1), lambda b: loss(b).loss, reference, rtol=1e-6)


@pytest.mark.parametrize(("mining", "peer"), [("all", "ContrastiveLoss"), ("hard", "OnlineContrastiveLoss")])
def test_contrastive_is_that_of_sentence_transformers(mining, peer):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    criterion = getattr(losses, peer)(torch.nn.Identity(), margin=0.9)

    def reference(b: EmbeddingBatch) -> Tensor:
        columns = [b.queries.values[b.relation.owner], b.documents.values]
        return criterion.compute_loss_from_embeddings(columns, b.relation.is_positive.long())

    hard = mining == "hard"
    loss = Contrastive(margin=0.9, mining=mining, reduction="sum" if hard else "mean")
    assert_same(aligned_batch(hard=2), lambda b: loss(b).loss * (2 if hard else 1), reference, rtol=1e-6, atol=1e-9)


# -- properties and bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [Triplet(), Contrastive(), Contrastive(mining="hard")], ids=lambda x: type(x).__name__)
def test_the_order_of_the_documents_does_not_count(loss):
    batch = BATCHES[0]
    order = torch.randperm(batch.relation.num_documents, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(permute_documents(batch, order)).loss, loss(batch).loss, rtol=1e-12, atol=0)


def test_a_query_on_its_positive_has_a_finite_gradient():
    batch = with_leaves(BATCHES[0])
    values = batch.documents.values.detach().clone()
    values[0] = batch.queries.values[batch.relation.owner[0]].detach()
    batch = replace(batch, documents=replace(batch.documents, values=values.requires_grad_()))
    for loss in (Triplet(distance="euclidean", margin=2.0), Contrastive(distance="euclidean")):
        assert all(torch.isfinite(gradient).all() for gradient in gradients(batch, loss(batch).loss))


@pytest.mark.parametrize("similar", [0.0, 1.0])
def test_hard_mining_copes_with_pairs_of_one_kind(similar):
    batch = pairs_of(BATCHES[0], [similar] * BATCHES[0].relation.num_documents)
    output = Contrastive(targets="scores", mining="hard", margin=2.0)(batch)
    assert output.loss > 0
    assert 0 < output.metrics["kept_pairs"] < 1


def test_a_batch_without_hard_negatives_is_refused_with_a_way_out():
    with pytest.raises(DataError, match=r"negatives: .* no row of the batch has any. Mine them, or use loss=infonce"):
        Triplet()(random_batch(negatives=(0, 0)))


@pytest.mark.parametrize(("mining", "score"), [("all", 1.5), ("all", -0.1), ("hard", 0.5)])
def test_scores_that_are_no_targets_are_refused(mining, score):
    batch = BATCHES[0]
    scores = [1.0] * (batch.relation.num_documents - 1) + [score]
    with pytest.raises(DataError, match=rf"expected 0 .* got {score}"):
        Contrastive(targets="scores", mining=mining)(pairs_of(batch, scores))


def test_what_it_needs_depends_on_its_targets():
    assert needs_of(Contrastive()) == Needs()
    assert needs_of(Contrastive(targets="scores")) == Needs(scores=True)
    with pytest.raises(ConfigError, match="learns from scores"):
        Contrastive(targets="scores")(BATCHES[0])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Triplet, {"margin": -1.0}, "loss.margin"),
        (Triplet, {"distance": "dot"}, "loss.distance"),
        (Contrastive, {"margin": 0.0}, "loss.margin: .* nothing pushes"),
        (Contrastive, {"distance": "dot"}, "loss.distance"),
        (Contrastive, {"targets": "labels"}, "loss.targets: expected relation or scores"),
        (Contrastive, {"mining": "easy"}, "loss.mining"),
        (Contrastive, {"reduction": "none"}, "loss.reduction"),
    ],
)
def test_bad_settings_name_the_key(kind: Callable, settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)
