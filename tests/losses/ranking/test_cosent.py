"""CoSENT and AnglE against loops over all pairs of pairs, and against sentence-transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.ranking.angle import AnglE
from embedtrain.losses.ranking.cosent import CoSENT, order_loss
from embedtrain.types import EmbeddingBatch, Needs, needs_of
from tests.helpers.batches import aligned_batch, random_batch, with_leaves
from tests.losses.ranking.batches import assert_same, assert_shares_add_up, graded_batch, gradients, pairs_of

BATCHES = [graded_batch(1), graded_batch(2, levels=3), graded_batch(3, levels=2, dim=8)]  # without ties and with many


def cosine(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return q @ d


def angle(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """By complex arithmetic, dimension by dimension."""
    half = (len(q) + 1) // 2
    total = torch.zeros((), dtype=torch.complex128)
    for i in range(half):
        z = torch.complex(q[i], q[half + i] if half + i < len(q) else torch.zeros_like(q[i]))
        w = torch.complex(d[i], d[half + i] if half + i < len(d) else torch.zeros_like(d[i]))
        total = total + z * w.conj()
    total = total / (q.norm() * d.norm())
    return (total.real + total.imag).abs()


def loop(batch: EmbeddingBatch, similarity=cosine, temperature: float = 0.05) -> torch.Tensor:
    owner, scores = batch.relation.owner.tolist(), batch.relation.scores.tolist()
    s = [similarity(batch.queries.values[q], batch.documents.values[d]) / temperature for d, q in enumerate(owner)]
    total = torch.ones((), dtype=torch.float64)
    for high in range(len(s)):
        for low in range(len(s)):
            if scores[high] > scores[low]:
                total = total + torch.exp(s[low] - s[high])
    return torch.log(total)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize(("kind", "similarity"), [(CoSENT, cosine), (AnglE, angle)])
def test_loss_and_gradient_are_those_of_a_loop_over_pairs_of_pairs(batch, kind, similarity, temperature):
    loss = kind(temperature=temperature)
    assert_same(batch, lambda b: loss(b).loss, lambda b: loop(b, similarity, temperature))


@pytest.mark.parametrize(("kind", "peer"), [(CoSENT, "CoSENTLoss"), (AnglE, "AnglELoss")])
@pytest.mark.parametrize("dim", [8, 7])
def test_equal_to_sentence_transformers(kind, peer, dim):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    criterion = getattr(losses, peer)(torch.nn.Identity(), scale=20.0)
    batch = pairs_of(aligned_batch(hard=0, dim=dim), [0.1, 0.9, 0.5, 0.5, 0.2, 0.0])

    def reference(b: EmbeddingBatch) -> torch.Tensor:  # both normalise, so that gradients are tangent on either side
        unit = [torch.nn.functional.normalize(x, dim=1) for x in (b.queries.values, b.documents.values)]
        return criterion.compute_loss_from_embeddings(unit, b.relation.scores)

    def mine(b: EmbeddingBatch) -> torch.Tensor:
        unit = [replace(x, values=torch.nn.functional.normalize(x.values, dim=1)) for x in (b.queries, b.documents)]
        return kind(temperature=0.05)(replace(b, queries=unit[0], documents=unit[1])).loss

    assert_same(batch, mine, reference, rtol=1e-6)


@pytest.mark.parametrize("kind", [CoSENT, AnglE])
def test_shares_of_ranks_add_up(kind):
    for batch in BATCHES:
        assert_shares_add_up(batch, kind())


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50), st.booleans())
@settings(max_examples=40, deadline=None)
def test_only_the_order_of_the_scores_counts(seed, factor, offset, cubed):
    batch = graded_batch(seed % 7, levels=4)
    scores = batch.relation.scores
    other = pairs_of(batch, (factor * (scores**3 if cubed else scores) + offset).tolist())
    torch.testing.assert_close(CoSENT()(other).loss, CoSENT()(batch).loss, rtol=1e-12, atol=0)


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_pairs_does_not_count(seed, pairs, levels):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(pairs, generator=draw, dtype=torch.float64) * 20
    scores = torch.randint(0, levels, (pairs,), generator=draw)
    order = torch.randperm(pairs, generator=draw)
    torch.testing.assert_close(order_loss(logits[order], scores[order]), order_loss(logits, scores), rtol=1e-12, atol=0)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([2000.0, -2000.0, 0.0], requires_grad=True)
    loss = order_loss(logits, torch.tensor([0.0, 1.0, 0.5]))
    loss.backward()
    assert loss.item() == 4000.0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", [CoSENT, AnglE])
def test_equal_scores_teach_nothing_and_are_counted(kind):
    batch = pairs_of(graded_batch(), [0.7] * graded_batch().relation.num_documents)
    output = kind()(batch)
    assert output.loss.item() == 0
    assert all(not g.any() for g in gradients(batch, output.loss))
    assert output.metrics["squashed"].item() == 1
    assert kind()(graded_batch()).metrics["squashed"].item() == 0


def test_half_precision_embeddings_are_compared_in_fp32():
    batch = graded_batch(dtype=torch.bfloat16)
    exact = with_leaves(batch)
    exact = replace(
        exact,
        queries=replace(exact.queries, values=exact.queries.values.double()),
        documents=replace(exact.documents, values=exact.documents.values.double()),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = CoSENT()(batch).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), CoSENT()(exact).loss, rtol=1e-5, atol=0)


def test_a_document_that_no_query_brought_is_left_out():
    batch = graded_batch(4)
    relation = batch.relation
    owner, scores = relation.owner.clone(), relation.scores.clone()
    owner[0], scores[0] = -1, float("nan")  # as the documents of a memory are
    changed = replace(batch, relation=replace(relation, owner=owner, scores=scores))
    keep = torch.arange(1, relation.num_documents)
    fewer = replace(
        batch,
        documents=batch.documents.select(keep),
        relation=replace(
            relation,
            document_ids=relation.document_ids[1:],
            owner=owner[1:],
            is_positive=relation.is_positive[1:],
            scores=scores[1:],
        ),
    )
    torch.testing.assert_close(CoSENT()(changed).loss, CoSENT()(fewer).loss)


@pytest.mark.parametrize("kind", [CoSENT, AnglE])
def test_what_it_needs_is_said_and_refused_where_missing(kind):
    assert needs_of(kind()) == Needs(scores=True)
    with pytest.raises(ConfigError, match=r"learns from scores.*`scores`"):
        kind()(random_batch())
    batch = graded_batch()
    for bad in (float("nan"), float("inf")):
        scores = batch.relation.scores.tolist()
        scores[2] = bad
        with pytest.raises(DataError, match=r"1 of .* in the batch missing, NaN or infinite"):
            kind()(pairs_of(batch, scores))
    with pytest.raises(ConfigError, match=r"loss.temperature: expected a number above 0, got 0"):
        kind(temperature=0)


def test_an_angle_between_token_vectors_is_refused():
    batch = graded_batch()
    offsets = torch.arange(len(batch.queries) + 1)
    with pytest.raises(ConfigError, match="one vector per token"):
        AnglE()(replace(batch, queries=replace(batch.queries, offsets=offsets)))
