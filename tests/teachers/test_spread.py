"""Scores that hardly differ, or are not there, are refused before anything is learnt from them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.distillation.margin_mse import MarginMSE
from embedtrain.losses.distillation.score_kl import ScoreKL
from embedtrain.losses.distillation.spread import score_spread
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.wrappers.routed import Routed
from embedtrain.teachers.spread import refuse_squashed_batch, refuse_squashed_rows
from embedtrain.types import RaggedTokens, TeacherInput, TokenBatch, text_id
from tests.helpers.batches import random_relation
from tests.teachers.folders import ROWS


def scored(scale: float):
    return [
        replace(row, scores=tuple(0.99 + scale * i for i in range(len(row.positives) + len(row.negatives))))
        for row in ROWS
    ]


def test_the_spread_is_the_mean_deviation_within_queries():
    scores = torch.tensor([1.0, 3.0, 100.0, 5.0, 5.0, 11.0, torch.nan])
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 0])
    spread = score_spread(scores, owner)
    assert spread.queries == 2
    expected = (torch.tensor([1.0, 3.0]).std(correction=0) + torch.tensor([5.0, 5.0, 11.0]).std(correction=0)) / 2
    assert spread.mean == pytest.approx(expected.item())
    assert score_spread(scores[2:3], owner[2:3]).mean is None


@pytest.mark.parametrize("loss", [ScoreKL(), MarginMSE()])
def test_squashed_scores_of_rows_are_refused(loss):
    refuse_squashed_rows(loss, scored(1.0))
    with pytest.raises(ConfigError, match=r"standard deviation is 0\.0006.*Scores behind a sigmoid are squashed"):
        refuse_squashed_rows(loss, scored(0.001))


def test_what_is_squashed_depends_on_the_temperature():
    refuse_squashed_rows(ScoreKL(teacher_temperature=0.001), scored(0.001))
    with pytest.raises(ConfigError):
        refuse_squashed_rows(ScoreKL(teacher_temperature=100.0), scored(1.0))


def test_rows_without_scores_are_named():
    with pytest.raises(DataError, match=r"a:1: the loss learns from scores of the rows .*and this row has none"):
        refuse_squashed_rows(ScoreKL(), ROWS)
    refuse_squashed_rows(InfoNCE(), ROWS)


def test_rows_with_one_document_each_teach_nothing():
    alone = [replace(ROWS[0], negatives=(), scores=(1.0,))]
    with pytest.raises(ConfigError, match="no query brings two documents"):
        refuse_squashed_rows(ScoreKL(), alone)


class Fixed:
    """A teacher whose vectors come with the batch."""

    def embed(self, inputs: TeacherInput) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs.queries, inputs.documents


def batch(spread: float) -> TokenBatch:
    draw = torch.Generator().manual_seed(0)
    relation = random_relation(draw, queries=4, negatives=(2, 3))
    documents = torch.ones(relation.num_documents, 8) + spread * torch.randn(relation.num_documents, 8, generator=draw)
    vectors = TeacherInput(
        torch.nn.functional.normalize(torch.ones(4, 8), dim=1), torch.nn.functional.normalize(documents)
    )
    tokens = RaggedTokens.from_lists([[1]] * 4), RaggedTokens.from_lists([[1]] * relation.num_documents)
    return TokenBatch(*tokens, relation, teachers={"big": vectors})


def test_a_teacher_that_tells_no_documents_apart_is_refused_at_the_first_step():
    loss = ScoreKL(teacher="big", teacher_temperature=0.05)
    refuse_squashed_batch(loss, {"big": Fixed()}, [batch(1.0)])
    with pytest.raises(ConfigError, match="scores of the teacher 'big' hardly differ"):
        refuse_squashed_batch(loss, {"big": Fixed()}, [batch(0.01)])


def test_of_a_routed_loss_the_rows_of_other_sources_need_no_scores():
    loss = Routed(losses={"scored": ScoreKL()}, default=InfoNCE())
    rows = [replace(row, source="scored") for row in scored(1.0)]
    refuse_squashed_rows(loss, [*rows, *(replace(row, source="plain") for row in ROWS)])
    with pytest.raises(DataError, match="this row has none"):
        refuse_squashed_rows(loss, [*rows, replace(ROWS[0], source="scored")])
    squashed = [replace(row, source="scored") for row in scored(0.001)]
    with pytest.raises(ConfigError, match="standard deviation"):
        refuse_squashed_rows(loss, squashed)


@pytest.mark.parametrize("source", ["scored", "plain"])
def test_a_first_batch_without_a_query_of_the_scored_source_is_no_reason_to_stop(source):
    loss = Routed(losses={"scored": ScoreKL(teacher="big", teacher_temperature=0.05)}, default=InfoNCE())
    flat = batch(0.01)
    first = replace(flat, relation=replace(flat.relation, sources=torch.full((4,), text_id(source))))
    expected = pytest.raises(ConfigError, match="hardly differ") if source == "scored" else nullcontext()
    with expected:
        refuse_squashed_batch(loss, {"big": Fixed()}, [first])
