import pytest

from embedtrain.data.sources.columns import Columns
from embedtrain.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ("query positives negatives", ("query", ("positives",), ("negatives",), ())),
        ("query pos neg pos_scores neg_scores", ("query", ("pos",), ("neg",), ("pos_scores", "neg_scores"))),
        ("anchor positive negative", ("anchor", ("positive",), ("negative",), ())),
        ("question answer", ("question", ("answer",), (), ())),
        ("query response", ("query", ("response",), (), ())),
        ("sentence1 sentence2", ("sentence1", ("sentence2",), (), ())),
        (
            "query positive negative_10 negative_2 negative_1",
            ("query", ("positive",), ("negative_1", "negative_2", "negative_10"), ()),
        ),
        ("positive anchor scores", ("anchor", ("positive",), (), ("scores",))),  # the order means nothing
    ],
)
def test_names_of_other_programs_are_recognised(present, expected):
    columns = Columns.recognised(present.split(), "f")
    assert (columns.query, columns.positives, columns.negatives, columns.scores) == expected


def test_the_instruction_and_what_is_not_read_are_said():
    columns = Columns.recognised(["query", "pos", "prompt", "type"], "f")
    assert columns.instruction == "prompt"
    assert columns.describe() == "query <- query; positives <- pos; instruction <- prompt; not read: type"


@pytest.mark.parametrize(
    ("present", "doubt"),
    [
        ("query question answer", "'query', 'question' could all be the query"),
        ("query answer document", "'answer', 'document' could all be the positives"),
        ("query answer negative neg_1", "both 'negative' and numbered columns"),
        ("query answer neg negatives", "'negatives', 'neg' could all be the negatives"),
        ("query answer scores pos_scores", "both 'scores' and 'pos_scores'"),
        ("sentence1 sentence2 score", "'score' may say which pairs are positives"),
        ("query document label", "'label' may say which pairs are positives"),
        ("left right", "none is known to be the query"),
        ("query left", "none is known to be the positives"),
    ],
)
def test_a_doubt_is_an_error_that_lists_the_columns_and_the_mapping_to_write(present, doubt):
    with pytest.raises(DataError) as caught:
        Columns.recognised(present.split(), "pairs.csv")
    message = str(caught.value)
    assert message.startswith("pairs.csv: the columns are " + ", ".join(map(repr, present.split())))
    assert doubt in message
    assert "columns={query: <column>, positives: <column>" in message


def test_a_mapping_overrides_all_recognition():
    given = {"query": "left", "positives": ["right", "more"], "negatives": None, "scores": "label"}
    columns = Columns.given(given, ["left", "right", "more", "label", "query"], "f")
    assert (columns.query, columns.positives, columns.scores) == ("left", ("right", "more"), ("label",))
    assert columns.unused == ("query",)


def test_a_mapping_to_a_column_that_is_not_there_lists_those_that_are():
    with pytest.raises(DataError, match=r"f: there is no column 'answr'. The columns are 'q', 'answer'"):
        Columns.given({"query": "q", "positives": "answr"}, ["q", "answer"], "f")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": "q", "positives": "p", "docs": "d"}, r"columns\.docs: unknown role"),
        ({"query": "q"}, r"columns\.positives is not set"),
        ({"query": ["q", "p"], "positives": "p"}, "expected one column"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Columns.given(given, ["q", "p"], "f")


def example(values, **given):
    columns = Columns.given({"query": "q", "positives": "p", **given}, list(values), "f")
    return columns.example(values, "f:3")


def test_cells_hold_one_value_or_many_and_null_is_absent():
    row = example(
        {"q": "a", "p": ["b", "c"], "n1": None, "n2": "d", "s": [1, 2.5], "t": 3},
        negatives=["n1", "n2"],
        scores=["s", "t"],
    )
    assert (row.positives, row.negatives, row.scores) == (("b", "c"), ("d",), (1.0, 2.5, 3.0))
    assert row.row == "f:3"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"q": None, "p": "b", "n": "c"}, "f:3: q is missing"),
        ({"q": 5, "p": "b", "n": "c"}, "f:3: q is int '5'"),
        ({"q": "a", "p": ["b", 7], "n": "c"}, "f:3: p holds int '7'. Expected a text"),
        ({"q": "a", "p": "b", "n": {"text": "c"}}, "f:3: n holds dict"),
    ],
)
def test_a_wrong_type_names_row_and_column(values, message):
    with pytest.raises(DataError, match=message):
        example(values, negatives="n")


def test_scores_must_be_numbers():
    with pytest.raises(DataError, match=r"f:3: s holds str 'high'. Expected a number"):
        example({"q": "a", "p": "b", "s": "high"}, scores="s")


@pytest.mark.parametrize(
    ("cell", "label"),
    [("card lost", "card lost"), (7, "7"), (3.0, "3"), (0.5, "0.5"), (None, None), ("", None), (float("nan"), None)],
)
def test_a_class_is_text_or_a_number_or_none(cell, label):
    assert example({"q": "a", "p": "b", "intent": cell}, label="intent").label == label


@pytest.mark.parametrize("cell", [True, ["a"], {"name": "a"}])
def test_a_class_of_another_type_is_refused(cell):
    with pytest.raises(DataError, match=r"f:3: intent is .* Expected the class of the row"):
        example({"q": "a", "p": "b", "intent": cell}, label="intent")


@pytest.mark.parametrize(
    ("present", "way_out"),
    [
        ("query document label", "the class of the row, it belongs into the mapping as label: label"),
        ("query document labels", "the class of the row, it belongs into the mapping as label: labels"),
        ("sentence1 sentence2 score", "the grade of the pair, it belongs into the mapping as scores: score"),
    ],
)
def test_a_column_that_may_be_a_label_is_never_guessed_and_the_ways_out_are_named(present, way_out):
    with pytest.raises(DataError, match=way_out):
        Columns.recognised(present.split(), "f")


def test_label_and_what_is_read_are_said():
    columns = Columns.given({"query": "q", "positives": "q", "label": "c"}, ["q", "c", "x"], "f")
    assert columns.describe() == "query <- q; positives <- q; label <- c; not read: x"
    assert columns.used == ["q", "c"]
