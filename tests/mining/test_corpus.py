from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedtrain.data.sources.beir import BeirFolder
from embedtrain.errors import DataError
from embedtrain.mining.corpus import read_corpus
from embedtrain.mining.data import mining_data


def lines(path: Path, *rows: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_json_lines_with_titles_and_without(tmp_path, name):
    path = lines(
        tmp_path / name,
        {"text": "plain "},
        {"_id": "7", "title": "A title", "text": "and text"},
        "",
        {"id": 3, "title": "", "text": " bare "},
        {"docid": "x", "title": None, "text": "none"},
        {"text": "plain "},
    )
    corpus = read_corpus(str(path))
    assert corpus.documents == ["plain ", "A title and text", "bare", "none"]
    assert corpus.read == 5
    assert corpus.path == path


def test_a_line_of_text_is_a_document(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes("\ufeffone\r\n two\none\nthree".encode())
    corpus = read_corpus(path)
    assert corpus.documents == ["one", " two", "three"]
    assert corpus.read == 4


@pytest.mark.parametrize("title", [None, ["T", None]])
def test_parquet(tmp_path, title):
    columns = {"text": ["a", "b"], "_id": ["1", "2"], "other": [1, 2]} | ({"title": title} if title else {})
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    assert read_corpus(tmp_path / "c.parquet").documents == (["T a", "b"] if title else ["a", "b"])


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_the_documents_of_a_beir_folder_are_those_that_its_rows_bring(tmp_path, name):
    documents = [
        {"_id": "d1", "title": "A", "text": "cat "},
        {"_id": "d2", "text": " a dog "},
        {"_id": "d3", "title": "", "text": "bird"},
        {"_id": "d4", "title": "no", "text": "answer"},
    ]
    lines(tmp_path / name, *documents)
    lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "which"})
    (tmp_path / "qrels").mkdir()
    lines(tmp_path / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore", "q\td1\t1", "q\td2\t1", "q\td3\t1")
    corpus = read_corpus(tmp_path)
    assert corpus.documents == ["A cat", "a dog", "bird", "no answer"]
    data = mining_data(BeirFolder(path=str(tmp_path)), "beir", corpus=corpus)
    assert data.num_missing == 0
    assert data.positives_of(0).tolist() == [0, 1, 2]


def test_an_id_of_two_texts_names_both_lines(tmp_path):
    path = lines(tmp_path / "c.jsonl", {"_id": 1, "text": "a"}, "", {"text": "b"}, {"_id": "1", "text": "c"})
    with pytest.raises(DataError, match=r"c\.jsonl, line 4: the id '1' is that of another document in line 1\."):
        read_corpus(path)


def test_an_id_that_comes_again_with_its_text_is_a_duplicate(tmp_path):
    path = lines(
        tmp_path / "c.jsonl",
        {"_id": "1", "text": "a"},
        {"_id": "2", "text": "a"},
        {"_id": "1", "text": "a"},
        {"text": "b"},
    )
    corpus = read_corpus(path)
    assert (corpus.documents, corpus.read) == (["a", "b"], 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": " \n"}, "the document is empty. Remove the line"),
        ({"text": "", "title": " "}, "the document is empty"),
        ({"body": "x"}, r"text is missing\. Expected a text \(the keys are body\)"),
        ({"text": 3}, "text is int '3'"),
        ({"text": "x", "title": ["y"]}, "title is list"),
        ({"text": "x", "_id": 1.5}, "the id is float '1.5'"),
        ({"text": "x", "id": True}, "the id is bool 'True'"),
        ("{", "broken JSON"),
        ("[1]", "Expected an object"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path, row, message):
    path = lines(tmp_path / "c.jsonl", {"text": "fine"}, "", row)
    with pytest.raises(DataError, match=rf"c\.jsonl, line 3.*{message}"):
        read_corpus(path)


def test_an_empty_line_of_text_is_an_empty_document(tmp_path):
    with pytest.raises(DataError, match=r"c\.txt, line 2: the document is empty"):
        read_corpus(lines(tmp_path / "c.txt", "a", "", "b"))


def test_text_in_another_encoding_names_the_line(tmp_path):
    (tmp_path / "c.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"c\.txt, line 2: byte 3 .* is not UTF-8"):
        read_corpus(tmp_path / "c.txt")


def test_an_empty_row_of_a_table_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a", ""]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet, line 2: the document is empty"):
        read_corpus(tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet, line 2: text is missing"):
        read_corpus(tmp_path / "c.parquet")


def empty_table(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)


def other_table(path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("none.jsonl", lambda path: None, "does not exist. Expected a corpus"),
        ("c.csv", Path.touch, "not a kind of corpus that is known"),
        ("folder", Path.mkdir, "is a folder without corpus.jsonl"),
        ("c.jsonl", Path.touch, "is empty"),
        ("c.txt", Path.touch, "has no documents"),
        ("c.parquet", empty_table, "has no documents"),
        ("c.parquet", other_table, "there is no column 'text'. The columns are body"),
        ("c.parquet", Path.touch, "is not a Parquet file"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read_corpus(tmp_path / name)
