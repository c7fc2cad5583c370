"""A step of a token objective: its chunks, its errors, its first line."""

from __future__ import annotations

import pytest
import torch

from embedtrain.errors import TrainingError
from embedtrain.training.token_step import TokenStep, learning
from embedtrain.types import RaggedTokens, TokenTask
from tests.objectives.helpers import batch_of, encoder_for, folder_of, objective_for


@pytest.fixture
def parts(tmp_path):
    encoder = encoder_for("masked_lm", folder_of("masked_lm", tmp_path))
    return encoder, objective_for("masked_lm", encoder)


def test_a_loss_that_is_no_number_names_its_rows_and_leaves_the_weights(parts):
    encoder, objective = parts
    with torch.no_grad():
        encoder.backbone.hf_model.embeddings.word_embeddings.weight[:] = float("nan")
    step = TokenStep(encoder=encoder, objective=objective, chunk_tokens=1)
    with pytest.raises(TrainingError, match=r"step 4: the loss is not finite; rows in the chunks concerned: file:\d"):
        step([batch_of(0, 3, encoder)], 4)


def test_texts_without_a_word_to_predict_are_an_error(parts):
    encoder, objective = parts
    specials = RaggedTokens.from_lists([[101, 102], [101, 102]])
    nothing = TokenTask(
        {"text": specials},
        {"masked_lm": RaggedTokens.from_lists([[-100, -100]] * 2)},
        {"masked_lm": torch.tensor([0, 0])},
        torch.tensor([1, 2]),
    )
    objective.prepare = lambda batch, seed: nothing
    with pytest.raises(TrainingError, match="none of its texts has a word to predict"):
        TokenStep(encoder=encoder, objective=objective, chunk_tokens=100)([batch_of(0, 2, encoder)], 0)


def test_dropout_is_the_same_for_the_same_seed_and_step(tmp_path):
    encoder = encoder_for("masked_lm", folder_of("masked_lm", tmp_path), dropout=0.3)
    encoder.train()
    objective = objective_for("masked_lm", encoder)
    batch = batch_of(0, 4, encoder)
    step = TokenStep(encoder=encoder, objective=objective, chunk_tokens=40, seed=1)
    values = [step([batch], number).loss for number in (2, 2, 3)]
    assert values[0] == values[1] != values[2]


def test_only_what_the_objective_reads_learns(parts):
    encoder, objective = parts
    encoder.projection = torch.nn.Linear(32, 8)
    assert set(learning(encoder, objective)) == {"encoder.backbone", "objective"}
    step = TokenStep(encoder=encoder, objective=objective, chunk_tokens=100)
    assert not {id(p) for p in encoder.projection.parameters()} & {id(p) for p in step.parameters}
    step([batch_of(0, 4, encoder)], 0)
    assert all(p.grad is not None for p in step.parameters)
    assert encoder.projection.weight.grad is None


def test_the_first_line_counts_texts_tokens_and_predictions(parts):
    encoder, objective = parts
    batch = batch_of(0, 3, encoder)
    line = TokenStep(encoder=encoder, objective=objective, chunk_tokens=100).first_line([batch])
    task = objective.prepare(batch, 0)
    tokens = task.texts["text"].num_tokens
    asked = int(task.targets["masked_lm"].sum())
    assert line == f"first step: {len(task)} texts, {tokens} tokens; predictions: {asked} of masked_lm"
