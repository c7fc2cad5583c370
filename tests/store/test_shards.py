"""A file that is whole or is not there, in a format that others read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedtrain.errors import DataError
from embedtrain.store import shards as module
from embedtrain.store.reader import VectorStore, shard_names
from embedtrain.store.shards import open_shard, write_shard
from tests.store.folders import filled, started, texts, vectors


def test_a_shard_is_a_safetensors_file_with_its_keys_in_order(tmp_path):
    name = write_shard(tmp_path, np.array([9, 2, 5]), vectors([9, 2, 5]))
    there = load_file(tmp_path / name)
    assert sorted(there) == ["keys", "vectors"]
    assert there["keys"].tolist() == [2, 5, 9]
    np.testing.assert_array_equal(there["vectors"], vectors([2, 5, 9]))
    shard = open_shard(tmp_path / name, 3, "float32", "")
    assert shard.keys.flags.aligned
    assert isinstance(shard.vectors.base, np.memmap)
    assert (tmp_path / name).stat().st_mode & 0o777 == _plain_mode(tmp_path)


def _plain_mode(folder: Path) -> int:
    (folder / "plain").touch()
    return (folder / "plain").stat().st_mode & 0o777


def test_the_name_is_that_of_the_keys(tmp_path):
    one = write_shard(tmp_path, np.array([1, 2]), vectors([1, 2]))
    assert write_shard(tmp_path, np.array([2, 1]), vectors([2, 1])) == one
    assert write_shard(tmp_path, np.array([1, 3]), vectors([1, 3])) != one
    assert len(list(tmp_path.iterdir())) == 2


def damaged(path: Path, size: int) -> tuple[Path, str]:
    """A store with a shard of `size` bytes (negative: so many fewer)."""
    filled(path, [1, 2], [3, 4])
    shard = path / shard_names(path)[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:size])
    return path, shard.name


@pytest.mark.parametrize("size", [-1, -20, 40, 8, 3, 0])
def test_a_shard_that_is_cut_short_is_named_with_the_remedy(tmp_path, size):
    path, name = damaged(tmp_path / "s", size)
    with pytest.raises(
        DataError, match=rf"{name}: (cut short|cannot be read).*Delete this file and run the same command again"
    ):
        VectorStore(path).find([1])


def test_the_remedy_is_the_command_that_fills_the_store(tmp_path):
    path, _ = damaged(tmp_path / "s", -1)
    with pytest.raises(DataError, match="run `embedtrain teach` again: it writes what is missing"):
        VectorStore(path, command="`embedtrain teach`").has([1])


def test_what_was_cut_short_can_be_written_again(tmp_path):
    path, name = damaged(tmp_path / "s", -1)
    (path / name).unlink()
    missing = [key for key in (1, 2, 3, 4) if not VectorStore(path).has([key]).all()]
    assert len(missing) == 2
    filled(path, missing)
    np.testing.assert_array_equal(VectorStore(path).find([1, 2, 3, 4])[0], vectors([1, 2, 3, 4]))


def test_a_shard_that_another_rank_wrote_elsewhere_is_named(tmp_path):
    with pytest.raises(DataError, match=r"shard-gone\.safetensors is not there\. .*a disk that all ranks share"):
        VectorStore(filled(tmp_path / "s"), shards=["shard-gone.safetensors"]).has([1])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"keys": np.array([1]), "vectors": vectors([1, 2])}, r"expected \(1, 3\) of float32, got \(2, 3\)"),
        ({"keys": np.array([1]), "vectors": np.ones((1, 4), np.float32)}, r"got \(1, 4\)"),
        ({"keys": np.array([1]), "vectors": vectors([1]).astype(np.float16)}, "of float16"),
        ({"keys": np.array([1.0]), "vectors": vectors([1])}, "not a shard"),
        ({"keys": np.array([1])}, "not a shard"),
    ],
)
def test_what_is_no_shard_of_this_store_is_named(tmp_path, tensors, message):
    path = filled(tmp_path / "s")
    save_file(tensors, path / "shard-foreign.safetensors")
    with pytest.raises(DataError, match=rf"shard-foreign\.safetensors: .*{message}"):
        VectorStore(path).find([1])


@pytest.mark.parametrize("header", [b"{}", b"[1]", b"not json", json.dumps({"keys": 1, "vectors": 2}).encode()])
def test_a_header_that_says_nothing_is_named(tmp_path, header):
    path = filled(tmp_path / "s")
    (path / "shard-0.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DataError, match=r"shard-0\.safetensors: cut short, or not a shard.*Delete this file"):
        VectorStore(path).find([1])


def test_a_kill_leaves_whole_shards_and_the_next_writer_goes_on(tmp_path, monkeypatch):
    path = filled(tmp_path / "s", [1, 2])

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        filled(path, [3])
    monkeypatch.undo()
    assert len(list(path.glob("*.unfinished"))) == 1
    assert VectorStore(path).has([1, 2, 3]).tolist() == [True, True, False]
    filled(path, [3, 4])
    np.testing.assert_array_equal(VectorStore(path).find([1, 2, 3, 4])[0], vectors([1, 2, 3, 4]))


def test_what_a_kill_left_is_removed_and_what_another_run_writes_is_not(tmp_path):
    path = filled(tmp_path / "s", [1])
    left, growing = path / "shard-0.safetensors.a.unfinished", path / "shard-1.safetensors.b.unfinished"
    left.touch()
    growing.touch()
    long_ago = time.time() - 2 * module._SECONDS_TO_WRITE
    os.utime(left, (long_ago, long_ago))
    filled(path, [2])
    assert not left.exists()
    assert growing.exists()


def test_a_full_disk_says_what_to_do_and_leaves_nothing_half(tmp_path, monkeypatch):
    writer = started(tmp_path / "s")
    writer.add([1], vectors([1]), texts([1]))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written .*No space left.*Make room.*goes on from there"):
        writer.flush()
    assert not list((tmp_path / "s").glob("*.unfinished"))
    assert not shard_names(tmp_path / "s")
