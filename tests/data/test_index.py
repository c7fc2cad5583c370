import pytest

from embedtrain.data.index import SourceIndex, check
from embedtrain.errors import DataError
from embedtrain.types import TrainingExample, text_id


def row(**changes) -> TrainingExample:
    return TrainingExample(**{"query": "q", "positives": ("p",), "row": "f.jsonl:7", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positives": ()}, r"f\.jsonl:7: the row has no positive"),
        ({"query": "  "}, r"f\.jsonl:7: query is empty"),
        ({"positives": ("p", "")}, r"f\.jsonl:7: positives\[1\] is empty"),
        ({"negatives": ("",)}, r"f\.jsonl:7: negatives\[0\] is empty"),
        ({"positives": (3,)}, r"f\.jsonl:7: positives\[0\] is int '3'. Expected a text"),
        ({"scores": (1.0, 2.0)}, r"f\.jsonl:7: 2 scores for 1 positives and 0 negatives"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(changes, message):
    with pytest.raises(DataError, match=message):
        check(row(**changes))


def test_ids_are_those_of_the_texts_in_their_rows():
    index = SourceIndex.build([row(positives=("a", "b"), negatives=("c",)), row(query="r")])
    assert index.query_ids.tolist() == [text_id("q"), text_id("r")]
    assert index.positive_ids.tolist() == [text_id(t) for t in "abp"]
    assert index.num_positives.tolist() == [2, 1]
    assert index.negative_ids.tolist() == [text_id("c")]
    assert index.num_negatives.tolist() == [1, 0]


def test_rows_of_one_query_know_each_others_positives():
    index = SourceIndex.build([row(positives=("a",)), row(query="r"), row(positives=("b", "a"))])
    assert set(index.known_positives(0)) == set(index.known_positives(2)) == {text_id("a"), text_id("b")}
    assert index.known_positives(1) == [text_id("p")]


def test_the_fingerprint_sees_every_change():
    rows = [row(), row(query="r", negatives=("n",))]
    base = SourceIndex.build(rows).fingerprint
    assert SourceIndex.build([row(row="elsewhere"), rows[1]]).fingerprint == base
    others = [
        rows[::-1],
        rows[:1],
        [row(positives=("x",)), rows[1]],
        [row(scores=(1.0,)), rows[1]],
        [row(instruction="do"), rows[1]],
        [row(positives=("p", "n")), row(query="r")],
    ]
    assert len({base, *(SourceIndex.build(other).fingerprint for other in others)}) == len(others) + 1
