"""A model folder is whole or not there."""

import errno
import shutil
from collections import namedtuple

import pytest

from embedtrain.errors import CheckpointError
from embedtrain.export.staging import staged_folder

Usage = namedtuple("Usage", "total used free")


def write(path, content, *, needed=1, failure=None):
    with staged_folder(path, needed=needed) as partial:
        (partial / "modules.json").write_text(content)
        if failure is not None:
            raise failure


def test_the_folder_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "model"
    with staged_folder(path, needed=1) as partial:
        (partial / "modules.json").write_text("[]")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["modules.json"]
    assert [p.name for p in path.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_write_leaves_no_folder(tmp_path, interruption):
    with pytest.raises(interruption):
        write(tmp_path / "model", "[]", failure=interruption())
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_earlier_model(tmp_path):
    path = tmp_path / "model"
    write(path, "first")
    with pytest.raises(KeyboardInterrupt):
        write(path, "second", failure=KeyboardInterrupt())
    assert (path / "modules.json").read_text() == "first"
    write(path, "third")
    assert (path / "modules.json").read_text() == "third"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "half.safetensors").write_text("x")
    write(tmp_path / "model", "[]")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["modules.json"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"thesis exists and is not a model folder"):
        write(tmp_path / "thesis", "[]")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 95, 5))
    with pytest.raises(CheckpointError, match=r"model could not .* disk is full \(7,000 bytes needed, 5 free\)"):
        write(tmp_path / "model", "[]", needed=7000, failure=AssertionError("nothing may be written"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_leaves_no_folder(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(CheckpointError, match=r"model could not be written: the disk is full \(3 bytes needed"):
        write(tmp_path / "model", "[]", needed=3, failure=full)
    assert list(tmp_path.iterdir()) == []
