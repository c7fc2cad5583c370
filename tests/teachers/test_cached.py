from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embedtrain.errors import ConfigError, DataError
from embedtrain.teachers.cached import CachedTeacher
from embedtrain.teachers.fill import Filled, fill
from embedtrain.teachers.online import OnlineTeacher
from embedtrain.types import Teacher
from tests.helpers.ranks import run_ranks
from tests.teachers.folders import ROWS, teacher_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return teacher_folder(tmp_path_factory.mktemp("cached"))


def cached(folder: str, path: Path, **options) -> CachedTeacher:
    options = {"filled_by": OnlineTeacher(model=folder), "numbers": "float32", "name": "big", **options}
    return CachedTeacher(store=str(path), **options)


def filled(folder: str, path: Path, rows=ROWS, **options) -> Filled:
    return fill(cached(folder, path, **options), rows, rows=len(rows), device="cpu")


DISTINCT = 2 + 5  # queries and documents; a text in both roles is two


def test_each_text_is_encoded_once_and_the_second_run_encodes_nothing(folder, tmp_path, monkeypatch):
    seen = []
    encode = OnlineTeacher.encode
    monkeypatch.setattr(OnlineTeacher, "encode", lambda self, tokens: seen.append(len(tokens)) or encode(self, tokens))
    assert filled(folder, tmp_path / "s") == Filled(encoded=DISTINCT, there=0)
    assert sum(seen) == DISTINCT
    monkeypatch.setattr(OnlineTeacher, "load", None)  # nor are weights read
    assert filled(folder, tmp_path / "s") == Filled(encoded=0, there=DISTINCT)
    assert sum(seen) == DISTINCT


def test_what_is_new_is_added(folder, tmp_path):
    filled(folder, tmp_path / "s", ROWS[:1])
    assert filled(folder, tmp_path / "s") == Filled(encoded=DISTINCT - 4, there=4)


@pytest.mark.parametrize("numbers", ["float32", "float16"])
def test_its_vectors_are_those_of_the_teacher_that_filled_it(folder, tmp_path, numbers):
    filled(folder, tmp_path / "s", numbers=numbers)
    teacher, online = cached(folder, tmp_path / "s", numbers=numbers), OnlineTeacher(model=folder)
    assert isinstance(teacher, Teacher)
    assert teacher.dim == online.dim
    teacher.load("cpu")
    online.load("cpu")
    there = pickle.loads(pickle.dumps(teacher))  # as in a worker
    for found, expected in zip(teacher.embed(there.prepare(ROWS)), online.embed(online.prepare(ROWS)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if numbers == "float32" else 1e-3)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


def test_a_store_can_be_read_without_its_model(folder, tmp_path):
    filled(folder, tmp_path / "s")
    alone, full = cached(folder, tmp_path / "s", filled_by=None), cached(folder, tmp_path / "s")
    alone.load("cpu")
    for found, expected in zip(alone.embed(alone.prepare(ROWS)), full.embed(full.prepare(ROWS)), strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(ConfigError, match=r"teachers\.big\.filled_by: null"):
        alone.manifest()


def test_a_text_that_is_not_there_names_the_row_and_the_command(folder, tmp_path):
    filled(folder, tmp_path / "s", ROWS[:2])
    new = replace(ROWS[2], negatives=("unheard of",))
    with pytest.raises(
        DataError,
        match=r"a:3: the store .* no vector of the document 'unheard of' \(1 of 2.*embedtrain teach .*teacher=big",
    ):
        cached(folder, tmp_path / "s").prepare([new])


def test_another_model_is_refused_when_filling_and_when_reading(folder, tmp_path):
    filled(folder, tmp_path / "s")
    other = OnlineTeacher(model=folder, prompts={"query": "other: "})
    with pytest.raises(DataError, match=r"the vectors in this store are not those of this model.*prompts"):
        filled(folder, tmp_path / "s", filled_by=other)
    with pytest.raises(DataError, match=r"prompts"):
        cached(folder, tmp_path / "s", filled_by=other).load("cpu")


def test_a_store_that_nobody_has_filled_says_how(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"teachers\.big\.store: .* no store of vectors yet.*embedtrain teach"):
        _ = cached(folder, tmp_path / "none").dim


def fill_on_rank(folder: str, path: str) -> Filled:
    torch.set_num_threads(1)
    return filled(folder, Path(path))


def test_ranks_share_the_texts_and_each_is_encoded_by_one(folder, tmp_path):
    answers = run_ranks(fill_on_rank, 2, folder, str(tmp_path / "s"))
    assert answers == [Filled(encoded=DISTINCT, there=0)] * 2
    assert len(list((tmp_path / "s").glob("shard-*"))) == 2  # each rank has written
    teacher = cached(folder, tmp_path / "s")
    teacher.load("cpu")
    assert len(teacher.store) == DISTINCT
    assert filled(folder, tmp_path / "s") == Filled(encoded=0, there=DISTINCT)  # on one rank, what two have written
