"""Losses by class against loops over triplets and pairs, and against sentence-transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.ranking.multi_similarity import MultiSimilarity
from embedtrain.losses.ranking.online_triplet import OnlineTriplet
from embedtrain.types import NO_LABEL, EmbeddingBatch, Needs, needs_of
from tests.helpers.batches import permute_documents, random_batch
from tests.losses.ranking.batches import assert_same, assert_shares_add_up, graded_batch, gradients

# Three classes; as many classes as queries, one of them without a positive; one class alone with others of one item.
BATCHES = [
    graded_batch(1, queries=7),
    graded_batch(2, classes=6, positives=(0, 2), queries=6),
    graded_batch(3, classes=2, queries=5, positives=(0, 1), spread=0.7),
]


def items(batch: EmbeddingBatch) -> tuple[list[Tensor], list[int]]:
    """Queries and positives, and their classes."""
    relation = batch.relation
    labels = relation.labels.tolist()
    positives = [d for d in range(relation.num_documents) if relation.is_positive[d]]
    vectors = [*batch.queries.values, *(batch.documents.values[d] for d in positives)]
    return vectors, labels + [labels[relation.owner[d]] for d in positives]


def distance(x: Tensor, y: Tensor, kind: str) -> Tensor:
    if kind == "cosine":
        return 1 - (x @ y) / (x.norm() * y.norm())
    squared = ((x - y) ** 2).sum()
    return squared if kind == "squared_euclidean" else squared.sqrt()


def triplet_loop(batch: EmbeddingBatch, strategy: str, margin: float, kind: str, average: str) -> Tensor:
    vectors, classes = items(batch)
    n = range(len(vectors))
    losses = []
    for a in n:
        d = {i: distance(vectors[a], vectors[i], kind) for i in n if i != a}
        positives = [p for p in d if classes[p] == classes[a]]
        negatives = [i for i in d if classes[i] != classes[a]]
        if not positives or not negatives:
            continue
        if strategy == "all":
            chosen = [(p, i) for p in positives for i in negatives]
        elif strategy == "hard":
            chosen = [(max(positives, key=lambda p: d[p].item()), min(negatives, key=lambda i: d[i].item()))]
        else:
            chosen = []
            for p in positives:
                beyond = [i for i in negatives if d[i] > d[p]]
                near = min(beyond, key=lambda i: d[i].item()) if beyond else max(negatives, key=lambda i: d[i].item())
                chosen.append((p, near))
        losses += [torch.clamp(d[p] - d[i] + margin, min=0) for p, i in chosen]
    return sum(losses) / (len(losses) if average == "all" else sum(float(x > 0) for x in losses))


def multi_similarity_loop(batch: EmbeddingBatch, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1, one_sided=True) -> Tensor:
    vectors, classes = items(batch)
    n = range(len(vectors))
    losses = []
    for a in n:
        s = {i: vectors[a] @ vectors[i] for i in n if i != a}
        positives = [s[i] for i in s if classes[i] == classes[a]]
        negatives = [s[i] for i in s if classes[i] != classes[a]]
        if epsilon is not None:
            least, most = min(positives, default=math.inf), max(negatives, default=-math.inf)
            positives = [x for x in positives if x < most + epsilon]
            negatives = [x for x in negatives if x > least - epsilon]
        if not one_sided and not (positives and negatives):
            continue
        pull = torch.log(1 + sum((torch.exp(-alpha * (x - base)) for x in positives), torch.zeros(()))) / alpha
        push = torch.log(1 + sum((torch.exp(beta * (x - base)) for x in negatives), torch.zeros(()))) / beta
        losses.append(pull + push)
    return sum(losses) / len(vectors)


TRIPLETS = [
    {"strategy": s, "margin": m, "distance": d, "average": a}
    for s in ("all", "semi_hard", "hard")
    for m, d in ((0.2, "squared_euclidean"), (0.5, "euclidean"), (0.1, "cosine"))
    for a in ("all", "active")
]
SIMILARITIES = [
    {},
    {"beta": 40.0, "one_sided": False},
    {"base": 1.0, "epsilon": None},
    {"epsilon": -0.2, "alpha": 1.0},  # keeps little: anchors with pairs of one kind, and of none
    {"epsilon": -0.2, "one_sided": False},
]
LOSSES = [OnlineTriplet(**s) for s in TRIPLETS] + [MultiSimilarity(**s) for s in SIMILARITIES]


def name(value: object) -> str:
    return "-".join(str(v) for v in value.values()) if isinstance(value, dict) else type(value).__name__


@pytest.mark.parametrize("settings", TRIPLETS, ids=name)
@pytest.mark.parametrize("batch", BATCHES, ids=["classes", "many", "near"])
def test_triplets_are_those_of_a_loop(batch, settings):
    loss = OnlineTriplet(**settings)
    wanted = (settings["strategy"], settings["margin"], settings["distance"], settings["average"])
    assert_same(batch, lambda b: loss(b).loss, lambda b: triplet_loop(b, *wanted))


@pytest.mark.parametrize("settings", SIMILARITIES, ids=name)
@pytest.mark.parametrize("batch", BATCHES, ids=["classes", "many", "near"])
def test_multi_similarity_is_that_of_a_loop_over_anchors(batch, settings):
    loss = MultiSimilarity(**settings)
    assert_same(batch, lambda b: loss(b).loss, lambda b: multi_similarity_loop(b, **settings))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_shares_of_ranks_add_up(loss):
    for batch in BATCHES:
        assert_shares_add_up(batch, loss)


def test_the_batches_hold_every_case():
    counts = [[items(b)[1].count(c) for c in items(b)[1]] for b in BATCHES]
    assert 1 in counts[1]  # an anchor alone in its class
    assert max(counts[0]) >= 4
    _, many = items(BATCHES[1])
    assert len(set(many)) == 6


# -- against sentence-transformers -------------------------------------------------------------------------------------


def peer(strategy: str, margin: float, kind: str) -> Callable[[EmbeddingBatch], Tensor]:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    named = {"all": "BatchAllTripletLoss", "semi_hard": "BatchSemiHardTripletLoss", "hard": "BatchHardTripletLoss"}
    functions = losses.BatchHardTripletLossDistanceFunction
    metric = functions.cosine_distance if kind == "cosine" else functions.euclidean_distance
    if kind == "squared_euclidean":
        metric = lambda x: functions.euclidean_distance(x, squared=True)  # noqa: E731
    criterion = getattr(losses, named[strategy])(torch.nn.Identity(), distance_metric=metric, margin=margin)

    def value(batch: EmbeddingBatch) -> Tensor:
        vectors, classes = items(batch)
        return criterion.compute_loss_from_embeddings([torch.stack(vectors)], torch.tensor(classes))

    return value


@pytest.mark.parametrize("strategy", ["all", "semi_hard", "hard"])
@pytest.mark.parametrize(("margin", "kind"), [(0.2, "squared_euclidean"), (0.5, "euclidean"), (0.1, "cosine")])
def test_equal_to_sentence_transformers_where_every_anchor_has_both_kinds(strategy, margin, kind):
    loss = OnlineTriplet(
        strategy=strategy, margin=margin, distance=kind, average="active" if strategy == "all" else "all"
    )
    assert_same(BATCHES[0], lambda b: loss(b).loss, peer(strategy, margin, kind), rtol=1e-6)


def test_an_anchor_alone_in_its_class_makes_no_triplet_but_one_with_itself_there():
    batch = BATCHES[1]
    mine = OnlineTriplet(strategy="hard")(batch).loss
    theirs = peer("hard", 0.2, "squared_euclidean")(batch)
    assert (mine - theirs).abs() > 1e-3


# -- properties and bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [OnlineTriplet(), OnlineTriplet(strategy="all"), MultiSimilarity()], ids=name)
def test_names_of_classes_and_the_order_of_documents_do_not_count(loss):
    batch = BATCHES[0]
    order = torch.randperm(batch.relation.num_documents, generator=torch.Generator().manual_seed(0))
    renamed = replace(batch, relation=replace(batch.relation, labels=10**12 - batch.relation.labels))
    for other in (permute_documents(batch, order), renamed):
        torch.testing.assert_close(loss(other).loss, loss(batch).loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", [OnlineTriplet(), MultiSimilarity()], ids=name)
def test_hard_negatives_have_no_class_and_no_gradient(loss):
    batch = BATCHES[0]
    _, documents = gradients(batch, loss(batch).loss)
    assert documents[batch.relation.is_positive].any()
    assert not documents[~batch.relation.is_positive].any()


@pytest.mark.parametrize("strategy", ["all", "semi_hard", "hard"])
@pytest.mark.parametrize("average", ["all", "active"])
def test_a_batch_of_one_class_has_no_triplet(strategy, average):
    batch = graded_batch(classes=1)
    output = OnlineTriplet(strategy=strategy, average=average)(batch)
    output.loss.backward()
    assert output.loss.item() == 0
    assert output.metrics["active_triplets"].item() == 0
    assert not batch.queries.values.grad.any()


def test_equal_texts_have_finite_gradients():
    batch = BATCHES[0]
    same = batch.documents.values.detach().clone()
    same[0] = batch.queries.values[batch.relation.owner[0]].detach()
    batch = replace(batch, documents=replace(batch.documents, values=same.requires_grad_()))
    for strategy in ("all", "semi_hard", "hard"):
        found = gradients(batch, OnlineTriplet(strategy=strategy, distance="euclidean")(batch).loss)
        assert all(torch.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize("kind", [OnlineTriplet, MultiSimilarity])
def test_what_it_needs_is_said_and_refused_where_missing(kind):
    assert needs_of(kind()) == Needs(labels=True)
    with pytest.raises(ConfigError, match="learns from classes"):
        kind()(random_batch())
    batch = graded_batch()
    labels = batch.relation.labels.clone()
    labels[2:4] = NO_LABEL
    with pytest.raises(DataError, match="2 of 6 queries in the batch have none; the first is query 2"):
        kind()(replace(batch, relation=replace(batch.relation, labels=labels)))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (OnlineTriplet, {"strategy": "easy"}, "loss.strategy: expected one of all, semi_hard, hard"),
        (OnlineTriplet, {"margin": -0.1}, "loss.margin"),
        (OnlineTriplet, {"distance": "dot"}, "loss.distance: expected one of euclidean"),
        (OnlineTriplet, {"average": "none"}, "loss.average"),
        (MultiSimilarity, {"alpha": 0.0}, "loss.alpha"),
        (MultiSimilarity, {"beta": -1.0}, "loss.beta"),
    ],
)
def test_bad_settings_name_the_key(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)
