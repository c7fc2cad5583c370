"""Files are whole or not there, ids are those of the texts, and no writer holds all rows."""

import os
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.sources import PairsFile
from embedtrain.data.writers import WRITERS, ids, tables
from embedtrain.data.writers.files import named, staged
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import text_id
from tests.data.writers.helpers import row, write

KINDS = list(WRITERS)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_fails_leaves_what_was_there(tmp_path, kind):
    before = write(kind, tmp_path, [row()])
    contents = {path: path.read_bytes() for path in before.files}

    def failing():
        yield row(query="another")
        raise DataError("the source ends here")

    with pytest.raises(DataError, match="the source ends here"):
        write(kind, tmp_path, failing())
    assert files(tmp_path) == sorted(str(path.relative_to(tmp_path)) for path in before.files)
    assert {path: path.read_bytes() for path in before.files} == contents


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_is_killed_leaves_nothing_that_looks_finished(tmp_path, kind):
    def killed():
        yield row()
        os._exit(9)

    child = os.fork()
    if child == 0:
        write(kind, tmp_path, killed())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert files(tmp_path)
    assert all(".partial" in name for name in files(tmp_path))
    write(kind, tmp_path, [row()])  # goes over what was left
    assert not [name for name in files(tmp_path) if ".partial" in name]


def test_the_file_that_makes_others_readable_is_never_beside_those_of_another_writing(tmp_path, monkeypatch):
    first, last = tmp_path / "corpus", tmp_path / "train"
    first.write_text("old")
    last.write_text("old")
    seen = []
    replace = type(first).replace

    def watched(self, target):
        result = replace(self, target)
        seen.append((first.read_text(), last.exists() and last.read_text()))
        return result

    monkeypatch.setattr(type(first), "replace", watched)
    with staged(first, last) as partial:
        for path in partial:
            path.write_text("new")
    assert seen == [("new", False), ("new", "new")]


def test_a_disk_that_refuses_is_said(tmp_path):
    (tmp_path / "rows").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"train\.jsonl could not be written: .*name another output folder"):
        write("tevatron", tmp_path, [row()])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "a\\b"])
def test_a_name_is_no_path(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a file"):
        named(tmp_path, name, ".jsonl")


def test_fewer_negatives_than_none_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"num_negatives=-1: expected 0 or more, or null\."):
        WRITERS["n_tuple"](tmp_path, "rows", [row()], num_negatives=-1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=12))
def test_first_seen_is_a_set(blocks):
    seen: set[int] = set()
    first = ids.FirstSeen()
    for block in blocks:
        expected = []
        for one in block:
            expected.append(one not in seen)
            seen.add(one)
        assert first(np.array(block, dtype=np.int64)).tolist() == expected
    sizes = [run.size for run in first._runs]
    assert all(a > 2 * b for a, b in pairwise(sizes))
    assert sum(sizes) == len(seen)


def test_an_id_is_that_of_the_text_in_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, "_ROWS_AT_A_TIME", 2)  # a text seen in one group is known in the next
    rows = [row(query=f"q{n % 3}", positives=[f"p{n % 4}"], negatives=["n", f"n{n}"]) for n in range(7)]
    for kind in ("tevatron", "beir"):
        write(kind, tmp_path, rows, name=kind)
    assert ids.content_id("n") == f"{text_id('n'):016x}"
    corpora = [(tmp_path / kind / "corpus.jsonl").read_text().splitlines() for kind in ("tevatron", "beir")]
    assert len(corpora[0]) == len(corpora[1]) == len({f"p{n}" for n in range(4)} | {"n"} | {f"n{n}" for n in range(7)})
    assert all(ids.content_id("n") in next(line for line in c if '"n"' in line) for c in corpora)
    assert len((tmp_path / "beir" / "queries.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_no_writer_holds_all_rows(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(ids, "_ROWS_AT_A_TIME", 8)
    monkeypatch.setattr(tables, "ROWS_AT_A_TIME", 8)
    write(kind, tmp_path, [row()])  # imports and caches

    def many():
        for n in range(400):
            yield row(query=f"{n}" * 2000, positives=[f"p{n}" * 2000], negatives=[f"n{n}" * 2000])

    tracemalloc.start()
    try:
        write(kind, tmp_path, many())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # the texts of all rows are about 5 MB
    path = next(iter(write(kind, tmp_path, many()).files))
    assert len(PairsFile(path=str(path if kind not in ("tevatron", "beir") else path.parent))) == 400
