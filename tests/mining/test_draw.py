"""Draws against sorted lists, known probabilities, and each other."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.draw import Drawn, draw_negatives, query_ids
from embedtrain.mining.records import NO_DOCUMENT, REASONS, Candidates
from tests.mining.filters.tables import part_of, table, texts_as_data

EACH = [("top", None), ("uniform", None), ("softmax", 0.3)]


def assert_a_draw_of(candidates: Candidates, drawn: Drawn, count: int, how: str) -> None:
    """K of what is kept, each once, with what is known of them; missing ones at the end."""
    for row in range(len(candidates.queries)):
        known = {
            document: (score, rank)
            for document, score, rank, kept in zip(
                candidates.documents[row].tolist(),
                candidates.scores[row].tolist(),
                candidates.ranks[row].tolist(),
                candidates.kept[row].tolist(),
                strict=True,
            )
            if kept
        }
        there = min(count, len(known))
        documents = drawn.documents[row].tolist()
        assert len(set(documents[:there])) == there
        assert set(documents[:there]) <= set(known)
        assert [(s, r) for s, r in zip(drawn.scores[row], drawn.ranks[row], strict=True)][:there] == [
            known[document] for document in documents[:there]
        ]
        assert documents[there:] == [NO_DOCUMENT] * (count - there)
        assert np.isnan(drawn.scores[row, there:]).all()
        assert (drawn.ranks[row, there:] == 0).all()
        assert [REASONS[reason] for reason in drawn.reasons[row]] == [how] * there + ["none"] * (count - there)
        assert drawn.taken[row] == there


@pytest.mark.parametrize(("how", "temperature"), EACH)
@pytest.mark.parametrize("count", [1, 4, 20])
def test_a_draw_takes_from_what_is_kept_each_once(how: str, temperature: float | None, count: int) -> None:
    for seed in range(6):
        candidates = table(seed)
        drawn = draw_negatives(candidates, count, how, temperature, seed=seed)
        assert drawn.documents.shape == (12, count)
        assert [part.dtype for part in drawn] == [np.int64, np.float32, np.int64, np.uint8]
        assert_a_draw_of(candidates, drawn, count, how)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from(EACH), st.integers(0, 2**63))
def test_no_draw_takes_what_a_filter_took_out(table_seed, count, how, seed):
    candidates = table(table_seed)
    assert_a_draw_of(candidates, draw_negatives(candidates, count, *how, seed), count, how[0])


def test_top_takes_the_highest_scores_and_the_better_rank_of_equal_ones() -> None:
    for seed in range(6):
        candidates = table(seed)
        # A rescorer gave other scores, with equal ones; ranks stay.
        candidates.scores = (
            candidates.scores[:, torch.randperm(9)].round(decimals=0).masked_fill(~candidates.kept, math.nan)
        )
        candidates.scores = torch.where(candidates.kept, candidates.scores.nan_to_num(0.5), math.nan)
        drawn = draw_negatives(candidates, 4)
        for row in range(12):
            kept = torch.nonzero(candidates.kept[row]).flatten().tolist()
            best = sorted(kept, key=lambda c: (-float(candidates.scores[row, c]), int(candidates.ranks[row, c])))[:4]
            assert drawn.documents[row, : len(best)].tolist() == candidates.documents[row, best].tolist()


@pytest.mark.parametrize(("how", "temperature"), EACH)
def test_a_draw_does_not_depend_on_blocks_order_or_other_queries(how: str, temperature: float | None) -> None:
    candidates = table(4)
    whole = draw_negatives(candidates, 3, how, temperature, seed=9)
    rows = [11, 3, 0, 5]
    apart = draw_negatives(part_of(candidates, rows), 3, how, temperature, seed=9)
    for one, other in zip(whole, apart, strict=True):
        np.testing.assert_array_equal(one[rows], other)


@pytest.mark.parametrize(("how", "temperature"), EACH[1:])
def test_the_first_of_a_draw_are_a_smaller_draw_and_another_seed_another(how: str, temperature: float) -> None:
    candidates = table(4)
    many, few = (draw_negatives(candidates, count, how, temperature, seed=1).documents for count in (6, 2))
    np.testing.assert_array_equal(many[:, :2], few)
    assert (draw_negatives(candidates, 6, how, temperature, seed=2).documents != many).any()


def alike(count: int, scores: list[float]) -> Candidates:
    """The same candidates for many queries."""
    width = len(scores)
    queries = [f"q{n}" for n in range(count)]
    return Candidates(
        data=texts_as_data(queries, [f"d{n}" for n in range(width + 1)], [[width]] * count),
        queries=np.arange(count),
        documents=torch.arange(width).repeat(count, 1),
        scores=torch.tensor(scores).repeat(count, 1),
        ranks=torch.arange(1, width + 1).repeat(count, 1),
        positive_scores=torch.ones(count),
        positive_offsets=torch.arange(count + 1),
        kept=torch.ones(count, width, dtype=torch.bool),
    )


@pytest.mark.parametrize(("how", "temperature"), [("uniform", None), ("softmax", 0.5), ("softmax", 5.0)])
def test_ordered_draws_have_the_probabilities_of_drawing_one_after_the_other(
    how: str, temperature: float | None
) -> None:
    scores, count = [1.0, 0.7, 0.1, -0.6], 20000
    drawn = draw_negatives(alike(count, scores), 2, how, temperature, seed=3).documents
    weights = [1.0] * 4 if temperature is None else [math.exp(score / temperature) for score in scores]
    seen = Counter(map(tuple, drawn.tolist()))
    for first, second in itertools.permutations(range(4), 2):
        expected = weights[first] / sum(weights) * weights[second] / (sum(weights) - weights[first])
        error = math.sqrt(expected * (1 - expected) / count)
        assert seen[(first, second)] / count == pytest.approx(expected, abs=4.5 * error)


def test_a_cold_softmax_is_top_and_a_hot_one_uniform() -> None:
    candidates = table(6)
    candidates.scores = (candidates.ranks * -0.01).masked_fill(~candidates.kept, math.nan)
    draws = [draw_negatives(candidates, 3, *how, seed=5).documents for how in (("softmax", 1e-9), ("top",))]
    np.testing.assert_array_equal(*draws)
    draws = [draw_negatives(candidates, 3, *how, seed=5).documents for how in (("softmax", 1e9), ("uniform",))]
    np.testing.assert_array_equal(*draws)


def test_queries_are_told_apart_by_instruction_and_text() -> None:
    data = texts_as_data(["a", "a", "b", "a"], ["d"], [[0]] * 4, instructions=[None, "find", "find", ""])
    ids = query_ids(data, np.arange(4)).tolist()
    assert len(set(ids)) == 3
    assert ids[0] == ids[3]


def test_settings_and_scores_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"miner.draw='best': expected one of top, uniform, softmax"):
        draw_negatives(table(0), 1, "best")
    for temperature in (None, 0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match=f"miner.temperature={temperature}: expected a number above 0"):
            draw_negatives(table(0), 1, "softmax", temperature)
    candidates = table(0)
    candidates.scores = candidates.scores.masked_fill(candidates.kept, math.nan)
    for how, temperature in EACH:
        with pytest.raises(DataError, match="the score of a candidate is nan"):
            draw_negatives(candidates, 1, how, temperature)


@pytest.mark.parametrize(("how", "temperature"), EACH)
def test_nothing_to_draw_from(how: str, temperature: float | None) -> None:
    assert draw_negatives(part_of(table(0), []), 3, how, temperature).documents.shape == (0, 3)
    candidates = table(0)
    for name in ("documents", "scores", "ranks", "kept"):
        setattr(candidates, name, getattr(candidates, name)[:, :0])
    assert (draw_negatives(candidates, 3, how, temperature).documents == NO_DOCUMENT).all()
