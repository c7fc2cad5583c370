from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.sources.chunked import ChunkedDocuments
from embedtrain.data.sources.jsonl import JsonLines
from embedtrain.errors import DataError
from embedtrain.mining.corpus import Corpus
from embedtrain.mining.data import mining_data
from embedtrain.types import NO_LABEL, TrainingExample, text_id
from tests.mining.rows import Rows, row


def corpus(*documents: str, read: int | None = None) -> Corpus:
    return Corpus(Path("corpus.jsonl"), list(documents), len(documents) if read is None else read)


def test_equal_texts_are_one_and_rows_of_one_query_share_their_positives():
    data = mining_data(
        Rows(
            [
                row("q1", "a", negatives=["b", "c"]),
                row("q2", "b", "d"),
                row("q1", "d", "a", negatives=["e", "b"]),
            ]
        ),
        "here",
    )
    assert data.source == "here"
    assert data.queries == ["q1", "q2"]
    assert data.instructions == [None, None]
    assert data.documents == ["a", "b", "c", "d", "e"]
    assert data.num_searched == 5
    assert data.num_missing == 0
    assert [data.positives_of(query).tolist() for query in (0, 1)] == [[0, 3], [1, 3]]
    assert data.query_of_row.tolist() == [0, 1, 0]
    assert data.documents_read == 9


def test_a_query_is_a_text_with_its_instruction():
    rows = [
        row("q", "a", instruction="find"),
        row("q", "b"),
        row("q", "c", instruction="find"),
        row("q", "d", instruction="rank"),
    ]
    data = mining_data(Rows(rows), "s")
    assert list(zip(data.queries, data.instructions, strict=True)) == [("q", "find"), ("q", None), ("q", "rank")]
    assert data.positives_of(0).tolist() == [0, 2]
    told = mining_data(Rows(rows, instruction="read"), "s")  # the source's, for rows that bring none
    assert told.instructions == ["find", "read", "rank"]


def test_a_corpus_takes_the_place_of_the_rows_and_lacking_positives_stand_behind_it():
    rows = [row("q1", "x", "b", negatives=["n"]), row("q2", "y", "x"), row("q1", "y", negatives=["b"])]
    data = mining_data(Rows(rows), "s", corpus=corpus("a", "b", "c", read=5))
    assert data.documents == ["a", "b", "c", "x", "y"]
    assert data.num_searched == 3
    assert data.num_missing == 2
    assert data.positives_of(0).tolist() == [3, 1, 4]
    assert data.positives_of(1).tolist() == [4, 3]
    assert data.documents_read == 5


def test_labels_are_known_where_there_is_one_alone():
    rows = [
        row("q1", "a", negatives=["n"], label="cat"),
        row("q2", "b", "a", label="dog"),
        row("q1", "c"),
        row("q3", "b", "d", label="dog"),
        row("q4", "e", label="cat"),
        row("q4", "e", label="dog"),
        row("q5", "f"),
    ]
    data = mining_data(Rows(rows), "s")
    cat, dog = text_id("cat"), text_id("dog")
    of_query = dict(zip(data.queries, data.query_labels.tolist(), strict=True))
    assert of_query == {"q1": cat, "q2": dog, "q3": dog, "q4": NO_LABEL, "q5": NO_LABEL}
    of_document = dict(zip(data.documents, data.document_labels.tolist(), strict=True))
    assert of_document == {
        "a": NO_LABEL,
        "n": NO_LABEL,
        "b": dog,
        "c": NO_LABEL,
        "d": dog,
        "e": NO_LABEL,
        "f": NO_LABEL,
    }


TEXTS = st.sampled_from("abcdefgh")
ROWS = st.lists(
    st.builds(
        lambda query, positives, negatives, instruction, label: row(
            query, *positives, negatives=negatives, instruction=instruction, label=label
        ),
        st.sampled_from("uvw"),
        st.lists(TEXTS, min_size=1, max_size=4),
        st.lists(TEXTS, max_size=3),
        st.sampled_from([None, "find"]),
        st.sampled_from([None, "cat", "dog"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, given_corpus=st.none() | st.lists(TEXTS, min_size=1, max_size=5, unique=True))
def test_it_is_what_a_loop_over_the_rows_says(rows: list[TrainingExample], given_corpus: list[str] | None):
    data = mining_data(Rows(rows), "s", corpus=None if given_corpus is None else corpus(*given_corpus))
    asked = [(example.query, example.instruction) for example in rows]
    queries = list(zip(data.queries, data.instructions, strict=True))
    assert queries == list(dict.fromkeys(asked))
    assert [queries[query] for query in data.query_of_row.tolist()] == asked

    searched = given_corpus
    if searched is None:
        searched = list(dict.fromkeys(t for example in rows for t in (*example.positives, *example.negatives)))
    answers = [text for example in rows for text in example.positives]
    assert data.num_searched == len(searched)
    assert data.documents == list(dict.fromkeys([*searched, *answers]))

    assert data.positive_offsets[0] == 0
    assert data.positive_offsets[-1] == data.positives.size
    for number, query in enumerate(queries):
        own = [e for e, key in zip(rows, asked, strict=True) if key == query]
        wanted = list(dict.fromkeys(text for example in own for text in example.positives))
        assert [data.documents[place] for place in data.positives_of(number).tolist()] == wanted
        labels = {example.label for example in own} - {None}
        assert data.query_labels[number] == (text_id(labels.pop()) if len(labels) == 1 else NO_LABEL)
    for number, text in enumerate(data.documents):
        labels = {example.label for example in rows if text in example.positives} - {None}
        assert data.document_labels[number] == (text_id(labels.pop()) if len(labels) == 1 else NO_LABEL)
    for array in (data.positives, data.positive_offsets, data.query_of_row, data.query_labels, data.document_labels):
        assert array.dtype == np.int64


def test_a_row_that_cannot_be_trained_on_is_named():
    with pytest.raises(DataError, match=r"f:2: positives\[1\] is empty"):
        mining_data(Rows([row("q", "a", row="f:1"), row("q", "a", " ", row="f:2")]), "s")
    with pytest.raises(DataError, match="rows has no rows"):
        mining_data(Rows([]), "s")


def test_chunks_of_a_document_are_refused(tmp_path):
    path = tmp_path / "chunks.jsonl"
    path.write_text(json.dumps({"query": "q", "chunks": ["a", "b"], "answer": 1}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"chunks\.jsonl:1: the documents of source 'books' are chunks .*out of mining"):
        mining_data(ChunkedDocuments(path=str(path)), "books")


def test_a_source_on_disk_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    lines = [{"query": "q", "positive": "a", "negatives": ["b"]}, {"query": "q", "positive": "c"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    reads: list[int] = []
    read = JsonLines._read
    monkeypatch.setattr(JsonLines, "_read", lambda self, number: reads.append(number) or read(self, number))
    data = mining_data(JsonLines(path=str(path), limit=2), "s")
    assert reads == [0, 1]
    assert data.documents == ["a", "b", "c"]
    assert data.positives_of(0).tolist() == [0, 2]
