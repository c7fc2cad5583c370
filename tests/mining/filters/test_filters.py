"""Each filter against a loop over candidates, and what must hold of all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.filters.consistency import Consistency
from embedtrain.mining.filters.margin_to_positive import MarginToPositive
from embedtrain.mining.filters.minimum_positive import MinimumPositive
from embedtrain.mining.filters.own_class import OwnClass
from embedtrain.mining.filters.percent_of_positive import PercentOfPositive
from embedtrain.mining.filters.rank_range import RankRange
from embedtrain.mining.filters.score_range import ScoreRange
from embedtrain.mining.records import NO_DOCUMENT, Candidates
from embedtrain.types import NO_LABEL
from tests.mining.filters.tables import part_of, positives_in, table, texts_as_data

PICK = {"lowest": min, "highest": max, "mean": mean}


def percent(share: float, against: str) -> Callable[..., bool]:
    def stays(c: Candidates, row: int, column: int, score: float, rank: int) -> bool:
        positive = PICK[against](positives_in(c, row))
        return score < positive - (1 - share) * abs(positive)

    return stays


def margin(size: float, against: str) -> Callable[..., bool]:
    return lambda c, row, column, score, rank: score < PICK[against](positives_in(c, row)) - size


def other_class(c: Candidates, row: int, column: int, score: float, rank: int) -> bool:
    query = c.data.query_labels[c.queries[row]]
    return query == NO_LABEL or query != c.data.document_labels[c.documents[row, column]]


FILTERS = {
    "ranks 3 to 5": (RankRange(first=3, last=5), lambda c, row, column, score, rank: 3 <= rank <= 5),
    "ranks from 4": (RankRange(first=4), lambda c, row, column, score, rank: rank >= 4),
    "scores": (ScoreRange(lowest=-0.35, highest=0.45), lambda c, row, column, score, rank: -0.35 <= score <= 0.45),
    "scores from": (ScoreRange(lowest=0.15), lambda c, row, column, score, rank: score >= 0.15),
    "scores to": (ScoreRange(highest=0.15), lambda c, row, column, score, rank: score <= 0.15),
    "own class": (OwnClass(), other_class),
} | {
    f"{name} of {against}": (kind(**{key: value, "against": against}), loop(value, against))
    for against in PICK
    for name, kind, key, value, loop in (
        ("percent", PercentOfPositive, "share", 0.83, percent),
        ("margin", MarginToPositive, "margin", 0.13, margin),
    )
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_keeps_what_a_loop_over_candidates_keeps(name: str) -> None:
    part, loop = FILTERS[name]
    kept = seen = 0
    for seed in range(8):
        candidates = table(seed)
        found = part(candidates)
        assert found.shape == candidates.kept.shape
        assert found.dtype == torch.bool
        for row, column in torch.nonzero(candidates.documents != NO_DOCUMENT).tolist():
            score, rank = float(candidates.scores[row, column]), int(candidates.ranks[row, column])
            assert bool(found[row, column]) == loop(candidates, row, column, score, rank), (seed, row, column)
            kept += int(found[row, column])
            seen += 1
    assert 0.1 * seen < kept < 0.9 * seen, "the tables do not tell"


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_sees_each_query_alone(name: str) -> None:
    candidates = table(3)
    whole = FILTERS[name][0](candidates)
    rows = [7, 0, 4, 1]
    assert torch.equal(
        FILTERS[name][0](part_of(candidates, rows)) & candidates.kept[rows], (whole & candidates.kept)[rows]
    )


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_takes_a_block_without_queries_or_candidates(name: str) -> None:
    part = FILTERS[name][0]
    candidates = table(1)
    assert part(part_of(candidates, [])).shape == (0, 9)
    narrow = {key: getattr(candidates, key)[:, :0] for key in ("documents", "scores", "ranks", "kept")}
    assert part(replace(candidates, **narrow)).shape == (12, 0)


scores = st.floats(-50, 50, width=32)


def one_query(score: float, positive: float) -> Candidates:
    return Candidates(
        data=texts_as_data(["q"], ["p", "n"], [[0]]),
        queries=torch.zeros(1, dtype=torch.int64).numpy(),
        documents=torch.tensor([[1]]),
        scores=torch.tensor([[score]]),
        ranks=torch.tensor([[1]]),
        positive_scores=torch.tensor([positive]),
        positive_offsets=torch.tensor([0, 1]),
        kept=torch.tensor([[True]]),
    )


@given(scores, scores, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_stricter_share_keeps_a_part_of_what_a_milder_one_keeps(score, positive, a, b):
    strict, mild = (bool(PercentOfPositive(share=share)(one_query(score, positive))) for share in sorted((a, b)))
    assert mild or not strict


@given(scores, scores, st.floats(-5, 5), st.floats(-5, 5))
def test_a_larger_margin_keeps_a_part_of_what_a_smaller_one_keeps(score, positive, a, b):
    mild, strict = (bool(MarginToPositive(margin=margin)(one_query(score, positive))) for margin in sorted((a, b)))
    assert mild or not strict


@given(scores, scores, st.floats(0.01, 1))
def test_no_share_keeps_what_scores_as_the_positive_or_higher_of_either_sign(score, positive, share):
    if score >= positive:
        assert not PercentOfPositive(share=share)(one_query(score, positive))


@given(scores, scores, st.sampled_from([0.5, 0.75, 0.9, 0.95]), st.sampled_from([0.25, 2.0, 64.0]))
def test_a_share_does_not_depend_on_the_unit_of_scores(score, positive, share, unit):
    """Powers of two, which are exact."""
    part = PercentOfPositive(share=share)
    assert torch.equal(part(one_query(score, positive)), part(one_query(score * unit, positive * unit)))


@given(st.integers(-300, 300), st.integers(-300, 300), st.integers(-50, 50))
def test_a_margin_does_not_depend_on_where_scores_begin(score, positive, shift):
    part = MarginToPositive(margin=0.25)
    moved = one_query(score / 4 + shift, positive / 4 + shift)
    assert torch.equal(part(one_query(score / 4, positive / 4)), part(moved))


def test_a_share_of_a_negative_score_lies_below_it() -> None:
    """share * score would be -1.9 of -2, which keeps what scores higher than the positive."""
    for score, stays in ((-1.95, False), (-2.0, False), (-2.05, False), (-2.15, True)):
        assert bool(PercentOfPositive(share=0.95)(one_query(score, -2.0))) == stays, score


# ------------------------------------------------------------------------------------------------------ queries


@pytest.mark.parametrize("positives", ["best", "every"])
@pytest.mark.parametrize("top", [1, 2, 5])
def test_consistency_keeps_queries_whose_positive_ranks_well_in_a_sorted_list(top: int, positives: str) -> None:
    seen = set()
    for seed in range(10):
        candidates = table(seed)
        found = Consistency(top=top, positives=positives)(candidates)
        for row in range(12):
            others = [score for score in candidates.scores[row].tolist() if not math.isnan(score)]
            ranks = []
            for own in positives_in(candidates, row):
                # Equal scores: the positive first.
                listed = sorted([*((score, 0) for score in others), (own, 1)], reverse=True)
                ranks.append(listed.index((own, 1)) + 1)
            wanted = min(ranks) <= top if positives == "best" else max(ranks) <= top
            assert bool(found[row]) == wanted, (seed, row)
            seen.add(wanted)
    assert seen == {True, False}


def test_consistency_looks_at_candidates_that_a_filter_took_out() -> None:
    candidates = table(0)
    part = Consistency(top=3)
    assert torch.equal(part(candidates), part(replace(candidates, kept=torch.zeros_like(candidates.kept))))


def test_consistency_keeps_the_other_queries_where_the_hard_ones_are_wanted() -> None:
    candidates = table(0)
    found, missed = Consistency(top=2)(candidates), Consistency(top=2, keep="missed")(candidates)
    assert torch.equal(missed, ~found)
    assert found.any()
    assert missed.any()


def test_consistency_refuses_a_rank_deeper_than_the_candidates() -> None:
    with pytest.raises(ConfigError, match=r"consistency.top=10: only 9 candidates .* a larger miner.depth"):
        Consistency(top=10)(table(0))
    few = texts_as_data(["q"], ["p", "n"], [[0]])
    assert Consistency(top=10)(replace(one_query(0.5, 0.1), data=few)).all(), "two documents are all there are"


@pytest.mark.parametrize("against", PICK)
def test_minimum_positive_keeps_queries_by_a_loop(against: str) -> None:
    candidates = table(5)
    found = MinimumPositive(lowest=0.1, against=against)(candidates).tolist()
    # In fp32, as the scores are.
    assert found == [PICK[against](positives_in(candidates, row)) >= 0.1 for row in range(12)]
    assert len(set(found)) == 2


# ------------------------------------------------------------------------------------------------- broken scores


READERS = [
    PercentOfPositive(),
    MarginToPositive(),
    ScoreRange(highest=0.5),
    Consistency(),
    MinimumPositive(lowest=0.0),
]


@pytest.mark.parametrize("part", READERS[:-1], ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused_with_its_texts(part, value: float) -> None:
    candidates = table(0)
    row, column = torch.nonzero(candidates.kept)[7].tolist()
    candidates.scores[row, column] = value
    document = candidates.data.documents[candidates.documents[row, column]]
    with pytest.raises(
        DataError, match=rf"things: the score of a candidate is {value}: query 'query {row}', document '{document}'"
    ):
        part(candidates)
    candidates.kept[row, column] = False
    part(candidates)  # nobody asks about it


@pytest.mark.parametrize(
    "part", [part for part in READERS if not isinstance(part, ScoreRange)], ids=lambda p: type(p).__name__
)
def test_a_positive_without_a_number_is_refused_with_its_texts(part) -> None:
    candidates = table(0)
    for place in (0, 5, candidates.positive_scores.numel() - 1):
        broken = candidates.positive_scores.clone()
        broken[place] = math.nan
        query = int((candidates.positive_offsets <= place).sum()) - 1
        document = candidates.data.documents[candidates.data.positives[place]]
        with pytest.raises(
            DataError, match=rf"the score of a positive is nan: query 'query {query}', document '{document}'"
        ):
            part(replace(candidates, positive_scores=broken))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RankRange(first=0), "rank_range.first=0: ranks count from 1"),
        (lambda: RankRange(first=5, last=4), "rank_range.last=4: expected at least first=5"),
        (lambda: ScoreRange(), "score_range: neither lowest nor highest"),
        (lambda: ScoreRange(lowest=0.5, highest=0.4), "lowest=0.5 is above highest=0.4"),
        (lambda: PercentOfPositive(share=0), "percent_of_positive.share=0: expected a share above 0"),
        (lambda: PercentOfPositive(share=95), "percent_of_positive.share=95"),
        (lambda: MarginToPositive(margin=math.nan), "margin_to_positive.margin=nan"),
        (lambda: MinimumPositive(lowest=math.inf), "minimum_positive.lowest=inf"),
        (lambda: Consistency(top=0), "consistency.top=0: ranks count from 1"),
        (lambda: Consistency(keep="all"), "consistency.keep='all': expected found or missed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.05, 1))
def test_what_a_share_keeps_is_less_like_the_query_than_every_positive(seed, share):
    candidates = table(seed)
    stays = PercentOfPositive(share=share, against="lowest")(candidates)
    for row, column in torch.nonzero(stays).tolist():
        assert float(candidates.scores[row, column]) < min(positives_in(candidates, row))
