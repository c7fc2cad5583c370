from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.distillation.score_kl import ScoreKL
from tests.helpers.batches import aligned_batch, with_leaves
from tests.losses.distillation.batches import gradients, own_documents, taught_batch

T, TAUGHT = 0.1, 0.7


def divergence(p: list, q: list) -> torch.Tensor:
    return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def slow(batch, direction: str, teacher: str | None) -> torch.Tensor:
    """The formulas of the class, query by query and document by document."""
    total = torch.zeros((), dtype=torch.float64)
    for query in range(len(batch.queries)):
        documents = own_documents(batch, query)
        if teacher is None:
            scores = [batch.relation.scores[d] for d in documents]
        else:
            other = batch.teachers[teacher]
            scores = [other.queries.values[query] @ other.documents.values[d] for d in documents]
        learnt = [batch.queries.values[query] @ batch.documents.values[d] for d in documents]
        e, f = [torch.exp(x / TAUGHT) for x in scores], [torch.exp(x / T) for x in learnt]
        p, q = [x / sum(e) for x in e], [x / sum(f) for x in f]
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        total = (
            total
            + {
                "forward": lambda p=p, q=q: divergence(p, q),
                "reverse": lambda p=p, q=q: divergence(q, p),
                "symmetric": lambda p=p, q=q: 0.5 * (divergence(p, q) + divergence(q, p)),
                "js": lambda p=p, q=q, m=m: 0.5 * (divergence(p, m) + divergence(q, m)),
            }[direction]()
        )
    return total / len(batch.queries)


@pytest.mark.parametrize("teacher", [None, "teacher"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric", "js"])
def test_the_divergence_of_two_softmaxes_over_each_querys_own_documents(direction, teacher):
    batch = taught_batch(negatives=(0, 3))
    loss = ScoreKL(teacher=teacher, temperature=T, teacher_temperature=TAUGHT, direction=direction)(batch).loss
    other = with_leaves(batch)
    expected = slow(other, direction, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    for found, wanted in zip(gradients(batch, loss), gradients(other, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_sentence_transformers_gives_the_same_but_for_the_squared_temperature():
    batch = aligned_batch(queries=5, hard=3)
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = replace(batch, relation=replace(batch.relation, scores=scores.flatten()))
    theirs = DistillKLDivLoss(torch.nn.Identity(), student_temperature=T, teacher_temperature=TAUGHT)
    columns = [batch.queries.values, *batch.documents.values.view(5, 4, -1).unbind(1)]
    expected = theirs.compute_loss_from_embeddings(columns, scores) / T**2
    loss = ScoreKL(temperature=T, teacher_temperature=TAUGHT)(batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for found, wanted in zip(gradients(batch, loss), gradients(batch, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_extreme_scores_give_finite_losses_and_gradients():
    batch = taught_batch(scale=1e6, negatives=(0, 3))
    for direction in ("forward", "reverse", "symmetric", "js"):
        loss = ScoreKL(temperature=0.01, direction=direction)(batch).loss
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in gradients(batch, loss))


def test_jensen_shannon_is_at_most_log_2():
    assert 0 < ScoreKL(temperature=0.001, direction="js")(taught_batch(scale=100)).loss <= math.log(2)


def test_a_student_that_agrees_has_loss_0_and_the_same_document_first():
    batch = taught_batch(negatives=(1, 3))
    own = replace(batch, teachers={"teacher": replace(batch, teachers={})})
    output = ScoreKL(teacher="teacher", temperature=T, teacher_temperature=T)(own)
    assert output.loss.item() == pytest.approx(0, abs=1e-12)
    assert output.metrics["same_first"].item() == pytest.approx(1)


def test_documents_that_no_query_brought_are_no_candidates():
    batch = taught_batch(negatives=(1, 2))
    owner = batch.relation.owner.clone()
    owner[-1] = -1
    memory = replace(batch, relation=replace(batch.relation, owner=owner))
    expected = slow(memory, "forward", None)
    assert ScoreKL(temperature=T, teacher_temperature=TAUGHT)(memory).loss.item() == pytest.approx(expected.item())


def test_rows_without_scores_are_refused_with_the_remedy():
    batch = taught_batch()
    with pytest.raises(ConfigError, match=r"loss\.teacher: null reads the scores of the rows.*or name a teacher"):
        ScoreKL()(replace(batch, relation=replace(batch.relation, scores=None)))
    scores = batch.relation.scores.clone()
    scores[batch.relation.owner == 2] = math.nan
    with pytest.raises(DataError, match=r"1 of this batch's 6 rows have none.* query 2 of the batch"):
        ScoreKL()(replace(batch, relation=replace(batch.relation, scores=scores)))


def test_a_teacher_that_the_run_has_not_is_refused():
    with pytest.raises(ConfigError, match="the loss reads the teacher 'big', but the run has 'teacher'"):
        ScoreKL(teacher="big")(taught_batch())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "loss.temperature: expected a number above 0"),
        ({"teacher_temperature": -1.0}, "loss.teacher_temperature"),
        ({"direction": "both"}, "loss.direction: expected one of forward, reverse, symmetric, js, got 'both'"),
    ],
)
def test_bad_settings_name_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        ScoreKL(**settings)
