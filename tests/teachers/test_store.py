from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from embedtrain.errors import ConfigError, DataError
from embedtrain.teachers.store import Manifest, StoreWriter, VectorStore

IDENTITY = {"weights": "abc", "prompts": {"query": "q: ", "document": ""}}


def manifest(**changes) -> Manifest:
    return Manifest(**{"identity": IDENTITY, "dim": 3, "numbers": "float32", **changes})


def vectors(keys) -> np.ndarray:
    return np.array([[key, key / 2, -key] for key in keys], dtype=np.float32)


def filled(path: Path, *shards: list[int], rank: int = 0) -> Path:
    writer = StoreWriter(path, manifest(), rank)
    writer.start()
    for keys in shards:
        writer.add(keys, vectors(keys))
        writer.flush()
    return path


def test_what_was_written_is_found_in_any_order(tmp_path):
    store = VectorStore(filled(tmp_path / "s", [9, 2, 5], [7, 1]))
    found, there = store.find([1, 5, 4, 9, 5, 100, -3])
    assert there.tolist() == [True, True, False, True, True, False, False]
    np.testing.assert_array_equal(found[there], vectors([1, 5, 9, 5]))
    assert not found[~there].any()
    assert store.has([7, 8, 2]).tolist() == [True, False, True]
    assert len(store) == 5


def test_an_empty_store_has_nothing(tmp_path):
    store = VectorStore(filled(tmp_path / "s"))
    assert store.has([1]).tolist() == [False]
    assert store.find([1])[1].tolist() == [False]
    assert VectorStore(filled(tmp_path / "t", [1])).has([]).tolist() == []


def test_shards_are_written_when_they_are_full(tmp_path):
    writer = StoreWriter(tmp_path / "s", manifest(), shard_texts=4)
    writer.start()
    for first in range(0, 9, 3):
        writer.add(range(first, first + 3), vectors(range(first, first + 3)))
    assert len(VectorStore(tmp_path / "s")) == 6
    writer.flush()
    assert len(VectorStore(tmp_path / "s")) == 9


def test_half_precision_takes_half_the_space_and_rounds(tmp_path):
    writer = StoreWriter(tmp_path / "s", manifest(numbers="float16"))
    writer.start()
    writer.add([1], np.array([[0.1, 0.2, 0.3]], dtype=np.float32))
    writer.flush()
    found, _ = VectorStore(tmp_path / "s").find([1])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.1, 0.2, 0.3]], atol=1e-4)
    assert not np.array_equal(found, np.array([[0.1, 0.2, 0.3]], dtype=np.float32))


def test_a_kill_leaves_whole_shards_and_the_next_writer_goes_on(tmp_path, monkeypatch):
    path = filled(tmp_path / "s", [1, 2])
    writer = StoreWriter(path, manifest())
    writer.start()
    writer.add([3], vectors([3]))
    replace = Path.replace

    def killed(self, target):
        if str(target).endswith(".keys.npy"):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.flush()
    monkeypatch.undo()
    assert list(path.glob("*.unfinished"))
    assert VectorStore(path).has([1, 2, 3]).tolist() == [True, True, False]
    filled(path, [3, 4])
    assert not list(path.glob("*.unfinished"))
    found, there = VectorStore(path).find([1, 2, 3, 4])
    assert there.all()
    np.testing.assert_array_equal(found, vectors([1, 2, 3, 4]))


def test_ranks_write_beside_each_other(tmp_path):
    filled(tmp_path / "s", [1], rank=0)
    left = tmp_path / "s" / "shard-001-00000.keys.npy.unfinished"
    left.touch()
    filled(tmp_path / "s", [2], rank=0)
    assert left.exists()  # of a rank that may be writing now
    filled(tmp_path / "s", [3], rank=1)
    assert not left.exists()
    assert VectorStore(tmp_path / "s").has([1, 2, 3]).all()


def test_a_store_of_another_teacher_is_refused_with_what_differs(tmp_path):
    filled(tmp_path / "s", [1])
    other = manifest(identity={**IDENTITY, "weights": "xyz"}, dim=4)
    with pytest.raises(DataError, match=r"weights 'abc' / 'xyz'; dim 3 / 4.*another folder"):
        StoreWriter(tmp_path / "s", other).start()


@pytest.mark.parametrize("kind", ["vectors", "keys"])
def test_a_shard_that_is_cut_short_is_named(tmp_path, kind):
    path = filled(tmp_path / "s", [1, 2], [3, 4])
    shard = path / f"shard-000-00001.{kind}.npy"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match=rf"shard-000-00001\.{kind}\.npy: cut short.*Delete .*shard-000-00001\.\*"):
        VectorStore(path).find([1])


def test_vectors_that_do_not_fit_their_keys_are_named(tmp_path):
    path = filled(tmp_path / "s", [1, 2])
    np.save(path / "shard-000-00000.vectors.npy", vectors([1]))
    with pytest.raises(DataError, match=r"expected \(2, 3\) of float32, got \(1, 3\)"):
        VectorStore(path).find([1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_written(tmp_path, bad):
    writer = StoreWriter(tmp_path / "s", manifest())
    writer.start()
    with pytest.raises(DataError, match="not finite in float32"):
        writer.add([1], np.array([[1.0, bad, 0.0]], dtype=np.float32))
    half = StoreWriter(tmp_path / "h", manifest(numbers="float16"))
    half.start()
    with pytest.raises(DataError, match="not finite in float16"):
        half.add([1], np.array([[1e5, 0.0, 0.0]], dtype=np.float32))


def test_no_store_and_a_broken_manifest_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="is no store of teacher vectors yet"):
        VectorStore(tmp_path)
    path = filled(tmp_path / "s", [1])
    (path / "manifest.json").write_text('{"dim": 3', encoding="utf-8")
    with pytest.raises(DataError, match="not a manifest"):
        VectorStore(path)


def test_it_travels_as_its_path(tmp_path):
    store = VectorStore(filled(tmp_path / "s", list(range(1000))))
    assert store.has([5]).all()
    assert len(pickle.dumps(store)) < 1000
    assert pickle.loads(pickle.dumps(store)).has([5]).all()
