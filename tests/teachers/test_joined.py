from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.teachers.cached import CachedTeacher
from embedtrain.teachers.fill import fill
from embedtrain.teachers.joined import JoinedTeacher
from embedtrain.teachers.online import OnlineTeacher
from embedtrain.types import Teacher
from tests.teachers.folders import ROWS, teacher_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    places = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    return [
        teacher_folder(place, seed=seed, query=query)
        for place, seed, query in zip(places, (0, 1), ("query: ", "q "), strict=True)
    ]


def joined(first: str, second: str, store: Path) -> JoinedTeacher:
    """One part from disk and one beside the student."""
    cached = CachedTeacher(store=str(store), filled_by=OnlineTeacher(model=first), numbers="float32")
    return JoinedTeacher(parts={"disk": cached, "beside": OnlineTeacher(model=second), "none": None}, name="both")


def test_its_vectors_are_those_of_its_parts_side_by_side(folders, tmp_path):
    teacher = joined(*folders, tmp_path / "store")
    assert [part.name for part in teacher.stores] == ["both"]
    fill(teacher.stores[0], ROWS, rows=len(ROWS), device="cpu")
    assert isinstance(teacher, Teacher)
    teacher.load("cpu")
    assert teacher.dim == 64
    there = pickle.loads(pickle.dumps(teacher))  # as in a worker
    made = teacher.embed(there.prepare(ROWS))
    alone = [OnlineTeacher(model=folder) for folder in folders]
    for one in alone:
        one.load("cpu")
    parts = [one.embed(one.prepare(ROWS)) for one in alone]
    for side, found in enumerate(made):
        expected = torch.cat([part[side] for part in parts], dim=1) / 2**0.5  # two of length 1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        similar = torch.stack([part[side] @ part[side].T for part in parts]).mean(0)
        torch.testing.assert_close(found @ found.T, similar, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parts", [{}, {"a": None}])
def test_one_is_no_company(parts):
    with pytest.raises(ConfigError, match=r"teachers\.both\.parts: expected at least two teachers, got none"):
        JoinedTeacher(parts=parts, name="both")
