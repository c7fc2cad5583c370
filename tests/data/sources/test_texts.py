"""Texts without pairs: a line, a field or a file is a row that is its own positive."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from embedtrain.data.collate import collate
from embedtrain.data.prompts import Prompts
from embedtrain.data.sources import Texts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.relation import RelationReader
from tests.data.helpers import minilm

THREE = ["one text", "ein zweiter, mit Ümlaut", "a third"]


def texts(source):
    return [example.query for example in source]


def test_a_line_a_field_and_a_file_are_rows_that_are_their_own_positives(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(THREE) + "\n\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": t, "id": 1}) + "\n" for t in THREE))
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for name, one in zip(("1.txt", "below/2.txt", "below/3.txt"), THREE, strict=True):
        (folder / name).write_text(one + "\n", encoding="utf-8")
    sources = [
        Texts(path=str(tmp_path / "a.txt")),
        Texts(path=str(tmp_path / "a.jsonl"), field="body"),
        Texts(path=str(folder)),
    ]
    assert [texts(source) for source in sources] == [THREE] * 3
    assert [source[1].row for source in sources] == ["a.txt:2", "a.jsonl:2", "below/2.txt"]
    assert all(example.positives == (example.query,) for source in sources for example in source)
    assert len({source.fingerprint for source in sources}) == 1


def test_a_packed_file_is_read_like_a_plain_one(tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(THREE))
    assert texts(Texts(path=str(tmp_path / "a.txt.gz"))) == THREE


def test_the_same_text_on_two_lines_is_no_negative_of_itself(tmp_path):
    (tmp_path / "a.txt").write_text("same\nother\nsame\n")
    source = Texts(path=str(tmp_path / "a.txt"))
    tokenizer = TextTokenizer(tokenizer=minilm(), prompts=Prompts(), max_query_length=16, max_document_length=16)
    batch = collate(list(source), tokenizer)
    for term in ("q2d", "d2q", "q2q", "d2d"):
        row, column = RelationReader(batch.relation).exceptions(term, torch.arange(3))
        assert set(zip(row.tolist(), column.tolist(), strict=True)) == {(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)}, term


def test_bad_input_says_where_and_what_to_do(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"body": "not"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: there is no 'text', but body.*field="):
        list(Texts(path=str(tmp_path / "a.jsonl")))
    (tmp_path / "b.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match=r"b\.jsonl:1: query is int '3'. Expected a text"):
        Texts(path=str(tmp_path / "b.jsonl")).index  # noqa: B018
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"expected a \.txt or \.jsonl file"):
        Texts(path=str(tmp_path / "a.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no \.txt file in it"):
        Texts(path=str(tmp_path / "empty"))
    (tmp_path / "empty" / "latin.txt").write_bytes("Ümlaut".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: byte 0 is not UTF-8"):
        list(Texts(path=str(tmp_path / "empty")))
