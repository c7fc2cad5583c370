"""Losses over all documents of the batch: InBatchKL, SuccessiveSoftmax, SelfDistillation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.losses.distillation import rest
from embedtrain.losses.distillation.in_batch_kl import InBatchKL
from embedtrain.losses.distillation.self_distillation import SelfDistillation
from embedtrain.losses.distillation.successive import SuccessiveSoftmax
from embedtrain.types import Embeddings, needs_of
from tests.helpers.batches import aligned_batch, with_leaves
from tests.losses.distillation.batches import gradients, own_documents, taught_batch
from tests.losses.distillation.test_score_kl import divergence
from tests.losses.oracle import Kinds

T, TAUGHT = 0.1, 0.3
DUPLICATES = {"queries": 6, "texts": 4, "contents": 9, "negatives": (1, 3)}


def check(batch, loss, slow) -> None:
    value, other = loss(batch).loss, with_leaves(batch)
    expected = slow(other)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    for found, wanted in zip(gradients(batch, value), gradients(other, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------- a teacher's view


@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric", "js"])
def test_the_divergence_over_all_documents_of_the_batch(direction):
    def slow(batch) -> torch.Tensor:
        taught, total = batch.teachers["teacher"], 0.0
        for x, t in zip(batch.queries.values, taught.queries.values, strict=True):
            q = torch.softmax(batch.documents.values @ x / T, 0)
            p = torch.softmax(taught.documents.values @ t / TAUGHT, 0)
            m = (p + q) / 2
            total = (
                total
                + {
                    "forward": divergence(p, q),
                    "reverse": divergence(q, p),
                    "symmetric": 0.5 * (divergence(p, q) + divergence(q, p)),
                    "js": 0.5 * (divergence(p, m) + divergence(q, m)),
                }[direction]
            )
        return total / len(batch.queries)

    loss = InBatchKL(temperature=T, teacher_temperature=TAUGHT, direction=direction)
    check(taught_batch(**DUPLICATES), loss, slow)


def test_torch_gives_the_same_kl():
    batch = taught_batch()
    taught = batch.teachers["teacher"]
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(batch.queries.values @ batch.documents.values.T / T, 1),
        torch.softmax(taught.queries.values @ taught.documents.values.T / TAUGHT, 1),
        reduction="batchmean",
    )
    loss = InBatchKL(temperature=T, teacher_temperature=TAUGHT)(batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


# ------------------------------------------------------------------------------------------------- scores of the rows


def others(batch, query: int) -> list[int]:
    """Documents that the query did not bring, that are no copy of one it or its equals brought, and no known answer."""
    kinds = Kinds(replace(batch.relation, is_positive=torch.ones_like(batch.relation.is_positive)))
    return [d for d in range(len(batch.documents)) if kinds.kind(query, d) == "negative"]


def logits(batch, query: int) -> torch.Tensor:
    return batch.documents.values @ batch.queries.values[query] / T


def shares(batch, documents: list[int], temperature: float) -> list[torch.Tensor]:
    scores = torch.stack([batch.relation.scores[d] for d in documents]) / temperature
    return list(torch.softmax(scores, 0))


@pytest.mark.parametrize("options", [DUPLICATES, {"negatives": (0, 2)}])
def test_soft_labels_on_the_querys_own_documents_against_the_whole_batch(options, monkeypatch):
    monkeypatch.setattr(rest, "CPU_TILE_BYTES", 400)

    def slow(batch) -> torch.Tensor:
        total = 0.0
        for query in range(len(batch.queries)):
            own, s = own_documents(batch, query), logits(batch, query)
            everything = sum(torch.exp(s[d]) for d in [*own, *others(batch, query)])
            p = shares(batch, own, TAUGHT)
            total = total + sum(a * (torch.log(a) - s[d] + torch.log(everything)) for a, d in zip(p, own, strict=True))
        return total / len(batch.queries)

    check(taught_batch(**options), InBatchKL(teacher=None, temperature=T, teacher_temperature=TAUGHT), slow)


def slow_successive(batch, order: str, weights: str, negatives: str) -> torch.Tensor:
    total = 0.0
    for query in range(len(batch.queries)):
        own, s = own_documents(batch, query), logits(batch, query)
        w = dict(zip(own, shares(batch, own, TAUGHT), strict=True)) if weights == "teacher" else dict.fromkeys(own, 1.0)
        if order == "teacher":
            own.sort(key=lambda d: -float(batch.relation.scores[d]))
        far = sum(torch.exp(s[d]) for d in others(batch, query)) if negatives == "in_batch" else 0.0
        for place, d in enumerate(own):
            left = sum(torch.exp(s[e]) for e in own[place:]) + far
            total = total - w[d] * torch.log(torch.exp(s[d]) / left)
    return total / len(batch.queries)


@pytest.mark.parametrize("negatives", ["in_batch", "own"])
@pytest.mark.parametrize(("order", "weights"), [("given", "teacher"), ("teacher", "teacher"), ("teacher", "equal")])
def test_documents_are_picked_one_after_the_other(order, weights, negatives):
    loss = SuccessiveSoftmax(
        temperature=T, teacher_temperature=TAUGHT, order=order, weights=weights, negatives=negatives
    )
    check(taught_batch(**DUPLICATES), loss, lambda batch: slow_successive(batch, order, weights, negatives))


def test_masking_what_was_picked_in_the_whole_matrix_gives_the_same():
    """As BGE-M3's code does it: cross-entropies of a matrix in which one more column is masked each time."""
    batch = aligned_batch(queries=5, hard=3)
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = replace(batch, relation=replace(batch.relation, scores=scores.flatten()))
    matrix = batch.queries.values @ batch.documents.values.T / 0.02
    weights, expected = scores.softmax(1), 0.0
    for place in range(4):
        column = torch.arange(5) * 4 + place
        each = torch.nn.functional.cross_entropy(matrix, column, reduction="none")
        expected = expected + (weights[:, place] * each).mean()
        matrix = matrix.scatter(1, column[:, None], float("-inf"))
    loss = SuccessiveSoftmax()(batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for found, wanted in zip(gradients(batch, loss), gradients(batch, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_batch_of_one_query_has_no_others():
    batch = taught_batch(queries=1, negatives=(2, 2), known=(0, 0))
    own = SuccessiveSoftmax(temperature=T, negatives="own")(batch).loss
    assert SuccessiveSoftmax(temperature=T)(batch).loss.item() == pytest.approx(own.item())
    assert all(torch.isfinite(g).all() for g in gradients(batch, SuccessiveSoftmax(temperature=T)(batch).loss))


# ------------------------------------------------------------------------------------------------- an ensemble


def with_views(batch, seed: int = 5):
    """The batch with a sparse view and one of token vectors, all of them leaves."""
    draw = torch.Generator().manual_seed(seed)

    def views(embeddings: Embeddings) -> Embeddings:
        count = len(embeddings)
        sparse = torch.rand(count, 9, generator=draw, dtype=torch.float64).requires_grad_()
        lengths = torch.randint(1, 4, (count,), generator=draw)
        tokens = torch.randn(int(lengths.sum()), 3, generator=draw, dtype=torch.float64)
        tokens = torch.nn.functional.normalize(tokens, dim=1).requires_grad_()
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        made = {"sparse": Embeddings(sparse, False), "multi_vector": Embeddings(tokens, offsets=offsets)}
        return replace(embeddings, views=made)

    return replace(batch, queries=views(batch.queries), documents=views(batch.documents))


def late(queries: Embeddings, documents: Embeddings) -> torch.Tensor:
    rows = []
    for q in range(len(queries)):
        tokens = queries.values[queries.offsets[q] : queries.offsets[q + 1]]
        row = []
        for d in range(len(documents)):
            inside = documents.values[documents.offsets[d] : documents.offsets[d + 1]]
            row.append(sum(max(x @ y for y in inside) for x in tokens) / len(tokens))
        rows.append(torch.stack(row))
    return torch.stack(rows)


ENSEMBLE = {"embedding": 1.0, "sparse": 0.3, "multi_vector": 1.0}
WEIGHTS = {"embedding": 1.0, "sparse": 0.1, "multi_vector": 1.0}


def test_each_view_learns_from_what_all_say_together():
    batch = with_views(taught_batch())
    output = SelfDistillation(ensemble=ENSEMBLE, weights=WEIGHTS, temperature=T)(batch)
    q, d = batch.queries, batch.documents
    scores = {
        "embedding": q.values @ d.values.T / T,
        "sparse": q.view("sparse").values @ d.view("sparse").values.T / T,
        "multi_vector": late(q.view("multi_vector"), d.view("multi_vector")) / T,
    }
    together = torch.softmax(sum(w * scores[name] for name, w in ENSEMBLE.items()).detach(), 1)
    each = {name: -(together * torch.log_softmax(s, 1)).sum(1).mean() for name, s in scores.items()}
    expected = (each["embedding"] + 0.1 * each["sparse"] + each["multi_vector"]) / 3
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for name, loss in each.items():
        assert output.metrics[f"loss_{name}"].item() == pytest.approx(loss.item())
    leaves = [*q.tensors(), *d.tensors()]
    for found, wanted in zip(
        torch.autograd.grad(output.loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_it_sets_in_after_the_start():
    loss = SelfDistillation(ensemble=ENSEMBLE, weights=WEIGHTS, start_step=100)
    batch = with_views(taught_batch())
    early = loss(replace(batch, step=99)).loss
    assert early.item() == 0
    early.backward()
    assert all(not x.grad.any() for x in batch.queries.tensors())
    assert loss(replace(batch, step=100)).loss.item() > 0


def test_views_that_it_needs_are_said():
    assert needs_of(SelfDistillation(ensemble=ENSEMBLE, weights=WEIGHTS)).views == ("multi_vector", "sparse")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: InBatchKL(teacher=None, direction="reverse"),
            r"loss\.direction: reverse asks how likely the teacher finds",
        ),
        (lambda: SuccessiveSoftmax(weights="equal"), r"loss\.order: given with weights: equal reads nothing"),
        (lambda: SuccessiveSoftmax(order="best"), r"loss\.order: expected given or teacher, got 'best'"),
        (lambda: SelfDistillation(ensemble={"a": 1.0, "b": 1.0}, weights={"a": 1.0}), "the same two or more views"),
    ],
)
def test_bad_settings_name_the_key(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
