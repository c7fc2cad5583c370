"""Each warning: mined rows from which it comes, and nearly the same ones from which it does not."""

import pytest

from embedtrain.mining.audit import audit, summary_lines
from embedtrain.mining.audit.warnings import THRESHOLDS, recalls
from embedtrain.types import NO_LABEL
from tests.mining.audit.mined import plain


def spread(queries, each=1):
    """Negatives that are no query's positive, each used once."""
    return [[queries + query * each + k for k in range(each)] for query in range(queries)]


def same_words(*, asked):
    """Query 1 asks as query 0 does, in capitals; its negative is query 0's positive."""
    return plain([[5], [0]], queries=["what is it", asked])


def own_class(*, label):
    labels = [NO_LABEL] * 100
    labels[5] = label
    return plain([[5], [6]], query_labels=[1, NO_LABEL], document_labels=labels)


def above_mean(*, score):
    return plain(spread(10, 2), scores=[[score, 0.1], *[[0.1, 0.1]] * 9])


def near_duplicates(*, text):
    documents = [f"text {d}" for d in range(10)]
    documents[0], documents[1] = "the tower in Paris is made of iron and steel", text
    return plain([[1]], documents=documents)


def outranked(*, queries):
    scores = [[0.9]] * queries + [[0.1]] * (10 - queries)
    return plain(spread(10), scores=scores)


def missing_positives(*, missing):
    """The last `missing` of 100 documents are not searched; 10 queries are answered by the last 10."""
    return plain(spread(10), positives=[[90 + q] for q in range(10)], num_searched=100 - missing)


def rows(*, empty=0, short=0, queries=100):
    """So many queries have no negative, and so many one of two."""
    negatives = [[q + 200, q + 300][: 0 if q < empty else 1 if q < empty + short else 2] for q in range(queries)]
    return plain(negatives, num_documents=500)


def filled_at_random(*, share):
    data, mined = plain(spread(20))
    mined.reasons[: round(20 * share)] = 4
    return data, mined


def dropped_queries(*, count):
    data, mined = plain(spread(10))
    mined.kept_queries[:count] = False
    mined.dropped_queries["consistent"] = count
    return data, mined


def hubs(*, times):
    """`times` of 60 queries have the same negative."""
    return plain([[99] if query < times else [query + 1] for query in range(60)], num_documents=200)


CASES = {
    "same_words": (same_words(asked="What is it?"), same_words(asked="What is that?")),
    "own_class": (own_class(label=1), own_class(label=2)),
    "above_mean": (above_mean(score=0.81), above_mean(score=0.79)),
    "near_duplicates": (
        near_duplicates(text="The tower in Paris is made of iron and glass"),
        near_duplicates(text="The tower of Paris was built from iron and glass"),
    ),
    "outranked": (outranked(queries=2), outranked(queries=1)),
    "missing_positives": (missing_positives(missing=1), missing_positives(missing=0)),
    "empty_rows": (rows(empty=1), rows(short=1)),
    "short_rows": (rows(short=5), rows(short=4)),
    "filled_at_random": (filled_at_random(share=0.05), filled_at_random(share=0)),
    "dropped_queries": (dropped_queries(count=2), dropped_queries(count=1)),
    "hubs": (hubs(times=40), hubs(times=5)),
    "one_document": (hubs(times=20), hubs(times=19)),
}


def names(mined, **options):
    return [one.name for one in audit(*mined, scored_by="m", **options).warnings]


@pytest.mark.parametrize("name", CASES)
def test_a_warning_comes_from_its_threshold_on(name):
    much, little = CASES[name]
    assert name in names(much)
    assert name not in names(little)


def test_every_warning_has_a_case():
    assert {*CASES, "missed"} == THRESHOLDS.keys()


@pytest.mark.parametrize(
    ("search", "missed"),
    [
        ({"kind": "exact"}, False),
        ({"kind": "faiss hnsw", "recall": 0.94}, True),
        ({"kind": "faiss hnsw", "recall": 0.96}, False),
        ({"kind": "faiss hnsw", "recall": None}, False),
        ({"kind": "hybrid", "searches": {"a": {"recall": 0.99}, "b": {"recall": 0.5}, "c": {"kind": "bm25"}}}, True),
    ],
)
def test_neighbours_that_a_search_missed_are_warned_of(search, missed):
    assert ("missed" in names(plain(spread(5)), facts={"search": search})) == missed


def test_recalls_of_fused_searches_are_all_found():
    assert recalls({"searches": {"a": {"recall": 0.9}, "b": {"recall": None}, "c": {"kind": "exact"}}}) == [0.9, None]


def test_good_rows_give_no_warning():
    assert names(plain(spread(20, 2))) == []


def test_what_is_certain_comes_before_what_is_suspected():
    data, mined = same_words(asked="WHAT IS IT")
    mined.scores[:] = 0.9
    assert names((data, mined)) == ["same_words", "above_mean", "outranked"]


def test_a_warning_tells_value_threshold_and_remedy():
    (warned,) = audit(*above_mean(score=0.9), scored_by="m").warnings
    assert (warned.name, warned.value, warned.threshold, warned.is_share) == ("above_mean", 0.05, 0.05, True)
    assert "miner=percent_of_positive" in warned.remedy
    assert "miner=rescored" in warned.remedy


def test_who_has_a_rescorer_is_not_told_to_take_one():
    (warned,) = audit(*above_mean(score=0.9), scored_by="m", rescored=True).warnings
    assert "rescored" not in warned.remedy


def test_short_rows_name_what_took_most_candidates():
    data, mined = rows(short=50)
    mined.dropped |= {"positive": 3, "margin": 1700}
    (warned,) = audit(data, mined, scored_by="m").warnings
    assert warned.remedy.endswith("Most candidates went to 'margin' (1,700).")


def test_terminal_says_key_figures_then_warnings_with_what_to_do():
    data, mined = rows(short=50)
    assert summary_lines(audit(data, mined, scored_by="tiny")) == [
        "150 negatives for 100 queries, 1.5 each; 50 queries have fewer than 2",
        "median score 0.800 of positives, 0.200 of negatives, by tiny",
        "0% of the negatives score above the mean positive of their query",
        "0% of the queries have one above every positive",
        "warning: 50.0% of the queries have some negatives, but fewer than 2. Formats with a column for each negative leave "
        "their rows out.",
        "  -> Look at more candidates (miner.depth), or filter less.",
    ]


def test_terminal_says_a_figure_once():
    lines = summary_lines(audit(*outranked(queries=5), scored_by="m"))
    assert sum("above every positive" in line for line in lines) == 1
    assert sum("above the mean positive" in line for line in lines) == 1


def test_terminal_has_words_for_nothing():
    data, mined = plain(spread(2))
    mined.kept_queries[:] = False
    assert summary_lines(audit(data, mined, scored_by="m"))[0] == "0 negatives for 0 of 2 queries"


def test_dropped_queries_are_told_with_what_dropped_them():
    (warned,) = audit(*dropped_queries(count=3), scored_by="m").warnings
    assert warned.text.endswith("(consistent: 3).")
    assert warned.value == pytest.approx(0.3)
