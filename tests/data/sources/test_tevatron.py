"""Rows that name their documents by id."""

import gzip
import json
import pickle

import pytest

from embedtrain.data.sources import PairsFile, Tevatron
from embedtrain.data.sources.tevatron import TextsById
from embedtrain.errors import ConfigError, DataError
from tests.data.helpers import write_jsonl

CORPUS = [
    {"docid": "d1", "title": "A title", "text": "one"},
    {"docid": "d2", "text": " two "},
    {"docid": 3, "title": None, "text": "three"},
    {"docid": "d4", "title": "", "text": "four"},
]
ROW = {
    "query_id": "q",
    "query_text": "asked",
    "positive_document_ids": ["d1", 3],
    "negative_document_ids": ["d4", "d2"],
}


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", CORPUS)
    write_jsonl(tmp_path / "train.jsonl", [ROW, {**ROW, "negative_document_ids": []}])
    return tmp_path


def read(source):
    return [(e.query, e.positives, e.negatives, e.scores, e.row) for e in source]


EXPECTED = [
    ("asked", ("A title one", "three"), ("four", " two "), None, "train.jsonl:1"),
    ("asked", ("A title one", "three"), (), None, "train.jsonl:2"),
]


def test_ids_become_texts(folder):
    source = Tevatron(path=str(folder))
    assert read(source) == read([source[0], source[1]]) == EXPECTED
    assert read(pickle.loads(pickle.dumps(source))) == EXPECTED
    assert read(Tevatron(path=str(folder / "train.jsonl"))) == EXPECTED
    assert read(PairsFile(path=str(folder))) == read(PairsFile(path=str(folder / "train.jsonl"))) == EXPECTED
    assert len(source.index) == 2
    assert Tevatron(path=str(folder), limit=1, instruction="do")[0].instruction == "do"


def test_files_may_be_packed_and_lie_elsewhere(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("corpus", "train"):
        packed = tmp_path / "elsewhere" / f"{name}.jsonl.gz"
        packed.write_bytes(gzip.compress((folder / f"{name}.jsonl").read_bytes()))
    (folder / "corpus.jsonl").unlink()
    assert [row[:3] for row in read(Tevatron(path=str(tmp_path / "elsewhere")))] == [row[:3] for row in EXPECTED]
    corpus = str(tmp_path / "elsewhere" / "corpus.jsonl.gz")
    assert read(Tevatron(path=str(folder / "train.jsonl"), corpus=corpus)) == EXPECTED


def test_older_rows_bring_their_passages(tmp_path):
    rows = [
        {
            "query_id": "1",
            "query": "asked",
            "positive_passages": [{"docid": "a", "title": "T", "text": "one"}],
            "negative_passages": [{"docid": "b", "text": "two"}, {"docid": "c", "title": "", "text": "three"}],
        },
        {"query_id": "2", "query": "again", "positive_passages": [{"text": "one"}]},
    ]
    expected = [("asked", ("T one",), ("two", "three"), None, "f.jsonl:1"), ("again", ("one",), (), None, "f.jsonl:2")]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    assert read(Tevatron(path=path)) == read(PairsFile(path=path)) == expected


def test_ranked_rows_of_pylate_have_the_best_document_as_positive(tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", [{"document_id": n, "text": f"text {n}"} for n in range(4)])
    write_jsonl(tmp_path / "queries.jsonl", [{"query_id": 7, "text": "asked"}])
    rows = [{"query_id": 7, "document_ids": [0, 2, 1, 3], "scores": [0.1, 0.9, 0.9, -1]}]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    expected = [("asked", ("text 2",), ("text 0", "text 1", "text 3"), (0.9, 0.1, 0.9, -1.0), "train.jsonl:1")]
    assert read(Tevatron(path=path)) == read(PairsFile(path=str(tmp_path))) == expected
    assert read(Tevatron(path=path, queries=str(tmp_path / "queries.jsonl"))) == expected


def test_ids_whose_hashes_are_equal_are_not_taken_for_each_other(folder, monkeypatch):
    """What is held is a hash; that the id is the right one is read from the file."""
    monkeypatch.setattr("embedtrain.data.sources.tevatron.text_id", lambda text: len(text))
    write_jsonl(folder / "corpus.jsonl", [{"docid": "d1", "text": "one"}])
    write_jsonl(folder / "train.jsonl", [{**ROW, "positive_document_ids": ["d2"]}])
    with pytest.raises(DataError, match="has no docid 'd2'"):
        _ = Tevatron(path=str(folder))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"positive_document_ids": ["d9"]},
            r"train\.jsonl, line 1, positive_document_ids: .*corpus\.jsonl has no docid 'd9'",
        ),
        ({"negative_document_ids": ["d1", "d9"]}, r"line 1, negative_document_ids: .*corpus\.jsonl has no docid 'd9'"),
        ({"negative_document_ids": "d1"}, r"line 1: negative_document_ids is 'd1'\. Expected a list of str or int"),
        ({"negative_document_ids": [True]}, r"negative_document_ids is '\[True\]'\. Expected a list of str or int"),
        ({"query_text": None}, r"line 1: query_text is None\. Expected a text"),
        ({"positive_document_ids": []}, r"train\.jsonl:1: the row has no positive"),
    ],
)
def test_what_is_missing_is_named_with_file_line_and_id(folder, change, message):
    write_jsonl(folder / "train.jsonl", [{**ROW, **change}])
    with pytest.raises(DataError, match=message):
        _ = Tevatron(path=str(folder)).index


def test_rows_of_no_form_and_rows_without_a_query_are_named(folder):
    write_jsonl(folder / "train.jsonl", [{"query": "q", "passages": []}])
    with pytest.raises(
        DataError, match=r"line 1: none of the keys positive_document_ids, .* is there, but query, passages"
    ):
        _ = Tevatron(path=str(folder)).index
    write_jsonl(folder / "train.jsonl", [{"positive_document_ids": ["d1"]}])
    with pytest.raises(DataError, match="neither query_text nor query nor query_id"):
        _ = Tevatron(path=str(folder)).index
    write_jsonl(folder / "train.jsonl", [{"query_id": "7", "document_ids": ["d1", "d2"], "scores": [1]}])
    write_jsonl(folder / "queries.jsonl", [{"query_id": "8", "text": "q"}])
    with pytest.raises(DataError, match=r"line 1: .*queries\.jsonl has no query_id '7'"):
        _ = Tevatron(path=str(folder)).index
    write_jsonl(folder / "queries.jsonl", [{"query_id": "7", "text": "q"}])
    with pytest.raises(DataError, match="2 document_ids and 1 scores"):
        _ = Tevatron(path=str(folder)).index


def test_a_corpus_that_is_not_there_or_not_in_order_is_named(folder):
    with pytest.raises(DataError, match=r"nothing\.jsonl does not exist"):
        _ = Tevatron(path=str(folder), corpus=str(folder / "nothing.jsonl")).index
    write_jsonl(folder / "corpus.jsonl", [*CORPUS, {"docid": "3", "text": "another"}])
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 5: the id '3' is that of line 3"):
        _ = Tevatron(path=str(folder)).index
    write_jsonl(folder / "corpus.jsonl", [*CORPUS, {"text": "another"}])
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 5: docid is None"):
        _ = Tevatron(path=str(folder)).index
    write_jsonl(folder / "corpus.jsonl", [*CORPUS[1:], {"docid": "d1", "contents": "another"}])
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 4: text is None"):
        _ = Tevatron(path=str(folder)).index


def test_columns_cannot_be_given_for_fixed_keys(folder):
    with pytest.raises(ConfigError, match="is a folder of Tevatron, whose keys are fixed"):
        PairsFile(path=str(folder), columns={"query": "q", "positives": "p"})


def test_texts_are_read_where_they_lie(folder):
    """What a corpus holds is two numbers for each document."""
    source = Tevatron(path=str(folder))
    _ = source[0]
    assert isinstance(source.corpus, TextsById)
    hashes, rows = source.corpus._places
    assert (hashes.nbytes, rows.nbytes) == (8 * len(CORPUS), 8 * len(CORPUS))
    assert json.dumps("three") not in repr(source.corpus.__dict__)
