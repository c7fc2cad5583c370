"""Rows to read."""

from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.mining.audit import audit
from embedtrain.mining.audit.examples import CHARACTERS, NEGATIVES, POSITIVES
from tests.mining.audit.mined import odd, plain


def many(queries=50):
    """Query q has a negative of score q / 100; positives have 0.3."""
    negatives = [[queries + query] for query in range(queries)]
    return plain(negatives, num_documents=2 * queries, positive=0.3, scores=[[q / 100] for q in range(queries)])


def chosen(mined, **options):
    return [(one.drawn, one.query.text) for one in audit(*mined, scored_by="m", **options).examples]


def test_half_are_the_most_suspicious_and_half_random():
    found = chosen(many())
    assert [query for drawn, query in found if drawn == "suspicious"] == [f"question {q}" for q in range(49, 39, -1)]
    random = [query for drawn, query in found if drawn == "random"]
    assert len(random) == 10
    assert len({query for _, query in found}) == 20


def test_the_same_seed_chooses_the_same_and_another_seed_others():
    assert chosen(many(), seed=1) == chosen(many(), seed=1)
    assert chosen(many(), seed=1)[:10] == chosen(many(), seed=2)[:10]
    assert chosen(many(), seed=1)[10:] != chosen(many(), seed=2)[10:]


def test_random_ones_are_drawn_from_all_that_are_left():
    seen = {query for seed in range(60) for _, query in chosen(many(), seed=seed)[10:]}
    assert seen == {f"question {q}" for q in range(40)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 9))
def test_examples_are_kept_queries_with_a_negative_each_once(seed, count):
    data, mined = odd(seed)
    has = [q for q in range(len(data.queries)) if mined.kept_queries[q] and (mined.documents[q] >= 0).any()]
    found = audit(data, mined, scored_by="m", examples=count).examples
    assert len(found) == min(count, len(has))
    texts = [one.query.text for one in found]
    assert len(set(texts)) == len(texts)
    assert set(texts) <= {data.queries[q] for q in has}
    for one in found:
        query = data.queries.index(one.query.text)
        assert one.instruction == data.instructions[query]
        assert one.num_positives == len(data.positives_of(query))
        assert one.num_negatives == (mined.documents[query] >= 0).sum()
        for shown, most in ((one.positives, POSITIVES), (one.negatives, NEGATIVES)):
            scores = [text.score for text in shown if text.score is not None]
            assert scores == sorted(scores, reverse=True)  # best first, and those without a score behind
            assert all(text.score is None for text in shown[len(scores) :])
            assert len(shown) <= most


def test_negatives_keep_score_rank_and_reason():
    (example,) = audit(*plain([[3, 7]], scores=[[0.75, 0.5]]), scored_by="m").examples
    assert [(one.text, one.score, one.rank, one.reason) for one in example.negatives] == [
        ("text 3", 0.75, 1, "top"),
        ("text 7", 0.5, 2, "top"),
    ]
    assert example.above is not None
    assert abs(example.above - (0.75 - 0.8)) < 1e-6


def test_without_scores_all_are_random():
    data, mined = plain([[3], [4]])
    mined.scores[:] = float("nan")
    (first, second) = audit(data, mined, scored_by="m").examples
    assert {first.drawn, second.drawn} == {"random"}
    assert first.above is None
    assert first.negatives[0].score is None


def test_a_long_text_is_cut_and_says_how_long_it_was():
    documents = [f"text {d}" for d in range(9)] + ["a" * 5000]
    (example,) = audit(*plain([[9]], documents=documents), scored_by="m").examples
    assert (len(example.negatives[0].text), example.negatives[0].characters) == (CHARACTERS, 5000)
