"""A query, documents and the label of each."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.sources import LabeledList, PairsFile
from embedtrain.errors import ConfigError, DataError
from tests.data.helpers import write_jsonl

ROWS = [
    {"query": "q1", "documents": ["a", "b", "c", "d"], "labels": [0, 1, 0, 1]},
    {"query": "q2", "documents": ["e"], "labels": [1]},
]
EXPECTED = [("q1", ("b", "d"), ("a", "c"), (1.0, 1.0, 0.0, 0.0)), ("q2", ("e",), (), (1.0,))]


def read(source):
    return [(e.query, e.positives, e.negatives, e.scores) for e in source]


@pytest.fixture(params=["jsonl", "parquet", "saved"])
def path(request, tmp_path):
    if request.param == "jsonl":
        return write_jsonl(tmp_path / "f.jsonl", ROWS)
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "f.parquet")
        return str(tmp_path / "f.parquet")
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_documents_with_label_1_are_the_positives(path):
    source = LabeledList(path=path)
    assert read(source) == read([source[0], source[1]]) == read(PairsFile(path=path)) == EXPECTED
    assert read(pickle.loads(pickle.dumps(source))) == EXPECTED
    assert len(source.index) == 2
    assert read(LabeledList(path=path, limit=1)) == EXPECTED[:1]
    assert "positives and negatives <- documents by labels" in source.describe()


def test_a_mapping_that_the_user_wrote_wins(tmp_path):
    path = write_jsonl(tmp_path / "f.jsonl", ROWS)
    source = PairsFile(path=path, columns={"query": "query", "positives": "documents", "scores": "labels"})
    assert read(source)[0] == ("q1", ("a", "b", "c", "d"), (), (0.0, 1.0, 0.0, 1.0))


def test_columns_may_have_other_names(tmp_path):
    path = write_jsonl(tmp_path / "f.jsonl", [{"q": "q1", "docs": ["a", "b"], "relevant": [0, 1]}])
    source = LabeledList(path=path, query="q", documents="docs", labels="relevant")
    assert read(source) == [("q1", ("b",), ("a",), (1.0, 0.0))]


def test_grades_need_the_grade_from_which_on_a_document_is_a_positive(tmp_path):
    rows = [{"query": "q", "documents": ["a", "b", "c"], "labels": [3, 0, 2.5]}]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    with pytest.raises(DataError, match=r"f\.jsonl:1: the label 3 is neither 0 nor 1\. .*positive_from=1.*form=scores"):
        _ = LabeledList(path=path).index
    assert read(LabeledList(path=path, positive_from=3)) == [("q", ("a",), ("b", "c"), (3.0, 0.0, 2.5))]
    assert read(LabeledList(path=path, positive_from=2.5)) == [("q", ("a", "c"), ("b",), (3.0, 2.5, 0.0))]
    scaled = LabeledList(path=path, positive_from=2.5, score_range=[0, 3])
    assert read(scaled)[0][3] == pytest.approx((1.0, 2.5 / 3, 0.0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_the_best_of_scored_documents_is_the_positive(tmp_path_factory, scores):
    folder = tmp_path_factory.mktemp("rows")
    documents = [f"d{n}" for n in range(len(scores))]
    path = write_jsonl(folder / "f.jsonl", [{"query": "q", "documents": documents, "labels": scores}])
    (row,) = read(LabeledList(path=path, form="scores"))
    best = next(n for n in range(len(scores)) if all(scores[n] >= other for other in scores))
    rest = [n for n in range(len(scores)) if n != best]
    assert row == ("q", (f"d{best}",), tuple(f"d{n}" for n in rest), (scores[best], *(scores[n] for n in rest)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "documents": ["a", "b"], "labels": [1]}, r"f\.jsonl:1: 2 documents and 1 labels"),
        ({"query": "q", "documents": ["a", "b"]}, r"2 documents and 0 labels|no column 'labels'"),
        ({"query": "q", "documents": ["a", "b"], "labels": [0, 0]}, r"f\.jsonl:1: the row has no positive"),
        ({"query": "q", "documents": ["a", 1], "labels": [0, 1]}, r"documents holds int '1'\. Expected a text"),
        ({"query": "q", "documents": ["a"], "labels": ["yes"]}, r"labels holds str 'yes'\. Expected a number"),
    ],
)
def test_broken_rows_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        _ = LabeledList(path=write_jsonl(tmp_path / "f.jsonl", [row])).index


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "f.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"positive_from=2: with form=scores the best document is the positive"):
        LabeledList(path=path, form="scores", positive_from=2)
    with pytest.raises(ConfigError, match=r"form='best': expected labels or scores"):
        LabeledList(path=path, form="best")
