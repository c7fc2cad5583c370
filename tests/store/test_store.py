from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedtrain.errors import DataError
from embedtrain.store import writer as writing
from embedtrain.store.keys import text_keys
from embedtrain.store.reader import NOWHERE, VectorStore, shard_names
from embedtrain.types import text_id
from tests.store.folders import filled, started, texts, vectors


def test_what_was_written_is_found_in_any_order(tmp_path):
    store = VectorStore(filled(tmp_path / "s", [9, 2, 5], [7, 1]))
    found, there = store.find([1, 5, 4, 9, 5, 100, -3])
    assert there.tolist() == [True, True, False, True, True, False, False]
    np.testing.assert_array_equal(found[there], vectors([1, 5, 9, 5]))
    assert not found[~there].any()
    assert store.has([7, 8, 2]).tolist() == [True, False, True]
    assert len(store) == 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True), max_size=4),
    wanted=st.lists(st.integers(-5, 45), max_size=30),
)
def test_a_lookup_is_that_of_a_loop_over_the_shards(tmp_path_factory, shards: list[list[int]], wanted: list[int]):
    path = filled(tmp_path_factory.mktemp("s"), *shards)
    store = VectorStore(path)
    shard, place = store.locate(wanted)
    for key, number, row in zip(wanted, shard.tolist(), place.tolist(), strict=True):
        holding = [n for n, one in enumerate(store.shards) if key in one.keys]
        assert number == (holding[0] if holding else NOWHERE)
        assert not holding or store.shards[number].keys[row] == key
    expected = [
        vectors([key])[0] if number != NOWHERE else [0, 0, 0] for key, number in zip(wanted, shard, strict=True)
    ]
    np.testing.assert_array_equal(store.find(wanted)[0], np.array(expected, dtype=np.float32).reshape(-1, 3))


def test_an_empty_store_has_nothing(tmp_path):
    store = VectorStore(filled(tmp_path / "s"))
    assert store.has([1]).tolist() == [False]
    assert store.find([1])[1].tolist() == [False]
    assert VectorStore(filled(tmp_path / "t", [1])).has([]).tolist() == []


def test_a_shard_is_written_when_it_is_full(tmp_path):
    writer = started(tmp_path / "s", shard_texts=4)
    for first in range(0, 9, 3):
        keys = range(first, first + 3)
        writer.add(keys, vectors(keys), texts(keys))
    assert len(VectorStore(tmp_path / "s")) == 6
    writer.flush()
    assert len(VectorStore(tmp_path / "s")) == 9
    writer.flush()
    assert sorted(writer.written) == shard_names(tmp_path / "s")
    assert len(writer.written) == 2


def test_a_shard_is_written_when_the_last_one_was_long_ago(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(writing.time, "monotonic", lambda: now)
    writer = started(tmp_path / "s", shard_seconds=60)
    writer.add([1], vectors([1]), texts([1]))
    now += 59
    writer.add([2], vectors([2]), texts([2]))
    assert not writer.written
    now += 1
    writer.add([3], vectors([3]), texts([3]))
    assert VectorStore(tmp_path / "s").has([1, 2, 3]).all()
    now += 59
    writer.add([4], vectors([4]), texts([4]))
    assert len(writer.written) == 1


def test_half_precision_takes_half_the_space_and_rounds(tmp_path):
    writer = started(tmp_path / "s", "float16")
    writer.add([1], np.array([[0.1, 0.2, 0.3]], dtype=np.float32), ["a"])
    writer.flush()
    store = VectorStore(tmp_path / "s")
    assert store.shards[0].vectors.nbytes == 6
    found, _ = store.find([1])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32(np.float16([[0.1, 0.2, 0.3]])))


def write(path: Path, keys: Sequence[int]) -> None:
    writer = started(path)
    writer.add(keys, vectors(keys), texts(keys))
    writer.flush()


def test_what_was_there_stays_and_new_shards_come_beside_it(tmp_path):
    path = filled(tmp_path / "s", [1, 2])
    before = shard_names(path)
    write(path, [3, 4])
    write(path, [2, 1])  # two runs may have begun at the same time
    assert before[0] in shard_names(path)
    assert len(shard_names(path)) == 2
    np.testing.assert_array_equal(VectorStore(path).find([1, 2, 3, 4])[0], vectors([1, 2, 3, 4]))


def test_readers_who_must_agree_read_the_shards_that_are_named(tmp_path):
    path = filled(tmp_path / "s", [1])
    named = VectorStore(path, shards=shard_names(path))
    filled(path, [2])
    assert named.has([1, 2]).tolist() == [True, False]
    assert VectorStore(path).has([1, 2]).all()


@pytest.mark.parametrize(("numbers", "bad"), [("float32", np.nan), ("float32", np.inf), ("float16", -np.inf)])
def test_a_vector_that_is_not_finite_names_its_text(tmp_path, numbers, bad):
    broken = np.array([[1.0, 0.0, 0.0], [1.0, bad, 0.0], [bad, bad, bad]], dtype=np.float32)
    with pytest.raises(DataError, match=r"2 of 3 texts .* not finite, the first is 'b'.*needs fp32"):
        started(tmp_path / "s", numbers).add([1, 2, 3], broken, ["a", "b", "c"])


def test_a_vector_too_long_for_half_precision_says_so(tmp_path):
    long = np.array([[65504.0, 0.0, 0.0], [1e5, 0.0, 0.0]], dtype=np.float32)
    with pytest.raises(DataError, match=r"1 of 2 texts .* not finite in float16, the first is 'b'.*float32"):
        started(tmp_path / "h", "float16").add([1, 2], long, ["a", "b"])
    started(tmp_path / "s").add([1, 2], long, ["a", "b"])


def test_zero_vectors_are_counted_and_not_refused(tmp_path):
    rows = vectors([1, 2, 3, 4])
    rows[[1, 3]] = 0
    writer = started(tmp_path / "s")
    writer.add([4, 3, 2, 1], rows, texts([4, 3, 2, 1]))  # keys 3 and 1 are 0
    writer.flush()
    filled(tmp_path / "s", [7, 8])
    store = VectorStore(tmp_path / "s")
    assert store.count_zeros(*store.locate([1, 2, 3, 4, 7, 8, 100])) == 2
    assert store.count_zeros(*store.locate([3, 7])) == 1
    assert store.count_zeros(*store.locate([])) == 0


def test_what_underflows_is_zero(tmp_path):
    writer = started(tmp_path / "s", "float16")
    writer.add([1], np.full((1, 3), 1e-9, dtype=np.float32), ["a"])
    writer.flush()
    store = VectorStore(tmp_path / "s")
    assert store.count_zeros(*store.locate([1])) == 1


def test_it_travels_as_its_path(tmp_path):
    store = VectorStore(filled(tmp_path / "s", list(range(1000))))
    assert store.has([5]).all()
    assert len(pickle.dumps(store)) < 1000
    assert pickle.loads(pickle.dumps(store)).has([5]).all()


def test_a_key_is_of_role_prompt_and_text():
    one = text_keys("query", [("a: ", "")], ["b"])
    assert one.tolist() == [text_id("query\x00a: \x00b")]
    others = [
        text_keys("document", [("a: ", "")], ["b"]),
        text_keys("query", [("", "")], ["a: b"]),
        text_keys("query", [("a: ", "")], ["c"]),
        text_keys("query", [("a: ", "!")], ["b"]),
        text_keys("query", [("a: ", "")], ["b!"]),
    ]
    assert len({key for keys in (one, *others) for key in keys.tolist()}) == 6
    assert text_keys("query", [], []).dtype == np.int64
