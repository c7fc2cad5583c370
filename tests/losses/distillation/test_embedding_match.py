from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

from embedtrain.errors import ConfigError
from embedtrain.losses.distillation.embedding_match import EmbeddingMatch
from embedtrain.types import needs_of
from tests.helpers.batches import with_leaves
from tests.losses.distillation.batches import gradients, taught_batch


def distance(name: str, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    squared = sum((a - b) ** 2 for a, b in zip(y, t, strict=True))
    return {
        "squared_l2": squared,
        "l2": squared.sqrt(),
        "mse": squared / len(y),
        "cosine": 1 - (y @ t) / (y @ y).sqrt() / (t @ t).sqrt(),
    }[name]


def each_kind(batch, texts) -> dict[str, list]:
    """(student's vector, teacher's) of every text of every kind."""
    taught = batch.teachers["teacher"]
    found: dict[str, list] = {name: [] for name in texts}
    for q in range(len(batch.queries)):
        found.get("queries", []).append((batch.queries.values[q], taught.queries.values[q]))
    for d, is_positive in enumerate(batch.relation.is_positive.tolist()):
        if batch.relation.owner[d] >= 0:
            kind = "positives" if is_positive else "negatives"
            found.get(kind, []).append((batch.documents.values[d], taught.documents.values[d]))
    return found


@pytest.mark.parametrize("average", ["texts", "kinds"])
@pytest.mark.parametrize("texts", [["queries"], ["positives", "queries"], ["queries", "positives", "negatives"]])
@pytest.mark.parametrize("name", ["squared_l2", "l2", "cosine", "mse"])
def test_the_mean_distance_to_the_teachers_vector_of_the_same_text(name, texts, average):
    batch = taught_batch(dim=7, teacher_dim=7, negatives=(1, 3))
    loss = EmbeddingMatch(distance=name, texts=texts, average=average)(batch).loss
    other = with_leaves(batch)
    kinds = [[distance(name, y, t) for y, t in pairs] for pairs in each_kind(other, texts).values()]
    total = sum(map(len, kinds))
    expected = sum(sum(kind) / (len(kind) if average == "kinds" else total) for kind in kinds)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for found, wanted in zip(gradients(batch, loss), gradients(other, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["l2", "cosine", "mse"])
def test_sentence_transformers_gives_the_same(name):
    batch = taught_batch(dim=7, teacher_dim=7, positives=(1, 1), negatives=(0, 0))
    taught = batch.teachers["teacher"]
    theirs = EmbedDistillLoss(torch.nn.Identity(), distance_metric=name)
    expected = theirs.compute_loss_from_embeddings(
        [batch.queries.values, batch.documents.values], [taught.queries.values, taught.documents.values]
    )
    assert EmbeddingMatch(distance=name)(batch).loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_dropped_projection_is_made_for_the_sizes_of_the_run_and_is_trained():
    batch = taught_batch(dim=5, teacher_dim=7)
    loss = EmbeddingMatch(projection="dropped")
    loss.prepare(embedding_dim=5, teachers={"teacher": 7})
    loss.double()
    assert [tuple(p.shape) for p in loss.parameters()] == [(7, 5), (7,)]
    w, b = loss.parameters()
    output = loss(batch)
    pairs = [pair for kind in each_kind(batch, ["queries", "positives", "negatives"]).values() for pair in kind]
    expected = sum(((w @ y + b - t) ** 2).sum() for y, t in pairs) / len(pairs)
    assert output.loss.item() == pytest.approx(expected.item())
    for found, wanted in zip(
        torch.autograd.grad(output.loss, [w, b, batch.queries.values]),
        torch.autograd.grad(expected, [w, b, batch.queries.values]),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_no_gradient_goes_to_the_teacher():
    batch = taught_batch(dim=7, teacher_dim=7)
    taught = batch.teachers["teacher"]
    vectors = taught.queries.values.clone().requires_grad_()
    batch = replace(batch, teachers={"teacher": replace(taught, queries=replace(taught.queries, values=vectors))})
    EmbeddingMatch()(batch).loss.backward()
    assert vectors.grad is None


def test_a_teacher_of_another_size_is_refused_before_the_first_step_and_in_it():
    message = (
        "the student's embeddings have 5 dimensions and those of the teacher 'teacher' have 7.*encoder.projection_dim=7"
    )
    with pytest.raises(ConfigError, match=message):
        EmbeddingMatch().prepare(embedding_dim=5, teachers={"teacher": 7})
    with pytest.raises(ConfigError, match=message):
        EmbeddingMatch()(taught_batch(dim=5, teacher_dim=7))


def test_it_says_which_teacher_it_reads():
    assert needs_of(EmbeddingMatch(teacher="big")).teachers == ("big",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": []}, "loss.texts: expected distinct names out of queries, positives, negatives"),
        ({"texts": ["documents"]}, "loss.texts"),
        ({"distance": "euclid"}, "loss.distance: expected one of squared_l2, l2, cosine, mse"),
        ({"projection": "exported"}, "loss.projection: expected one of none, dropped"),
        ({"average": "all"}, "loss.average"),
    ],
)
def test_bad_settings_name_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        EmbeddingMatch(**settings)
