"""Rows with too few negatives: kept, dropped, or filled with what cannot be an answer. And the whole way, for any data."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.errors import ConfigError
from embedtrain.mining.draw import Drawn, draw_negatives
from embedtrain.mining.exclusion import candidates_of
from embedtrain.mining.near_duplicates import Copies, copy_id
from embedtrain.mining.records import NO_DOCUMENT, REASONS, Candidates
from embedtrain.mining.short_rows import settle_short_rows
from embedtrain.types import NO_LABEL
from tests.mining.filters.tables import part_of, table, texts_as_data
from tests.mining.test_exclusion import random_data, random_found, scores_of

RANDOM = REASONS.index("random")


def drawn_from(candidates: Candidates, count: int) -> tuple[Drawn, Copies]:
    return draw_negatives(candidates, count), Copies(candidates.data.documents)


def test_short_rows_are_kept_or_dropped_and_counted() -> None:
    candidates = table(1)
    drawn, copies = drawn_from(candidates, 5)
    kept = candidates.kept.sum(1).clamp(max=5)
    counts = {
        "short rows": int((kept < 5).sum()),
        "rows without a negative": int((kept == 0).sum()),
        "negatives missing": int((5 - kept).sum()),
    }
    assert counts["short rows"] > counts["rows without a negative"] > 0
    same, stays, counted = settle_short_rows(drawn, candidates, "keep", copies)
    assert same is drawn
    assert stays.all()
    assert counted == counts
    same, stays, counted = settle_short_rows(drawn, candidates, "drop", copies)
    assert same is drawn
    assert stays.tolist() == (kept == 5).tolist()
    assert counted == counts | {"rows dropped": counts["short rows"]}


def test_rows_that_a_query_filter_dropped_are_neither_counted_nor_filled() -> None:
    candidates = table(1)
    drawn, copies = drawn_from(candidates, 5)
    wanted = np.arange(12) % 2 == 1
    short = (drawn.taken < 5) & wanted
    filled, stays, counts = settle_short_rows(drawn, candidates, "random", copies, wanted=wanted)
    assert counts["short rows"] == short.sum()
    assert stays.all()
    assert ((filled.reasons == RANDOM).any(1) == short).all()
    _, stays, _ = settle_short_rows(drawn, candidates, "drop", copies, wanted=wanted)
    assert stays.tolist() == (~short).tolist()


def test_a_row_is_filled_behind_what_it_has() -> None:
    candidates = table(2)
    drawn, copies = drawn_from(candidates, 5)
    filled, _, counts = settle_short_rows(drawn, candidates, "random", copies, seed=3)
    added = (drawn.documents == NO_DOCUMENT) & (filled.documents != NO_DOCUMENT)
    np.testing.assert_array_equal(filled.documents[~added], drawn.documents[~added])
    assert (filled.reasons[added] == RANDOM).all()
    np.testing.assert_array_equal(filled.reasons[~added], drawn.reasons[~added])
    assert np.isnan(filled.scores[added]).all()
    assert (filled.ranks[added] == 0).all()
    assert counts["filled at random"] == added.sum() == counts["negatives missing"] > 0
    assert counts["rows still short"] == 0


def test_what_was_looked_at_and_refused_does_not_come_back() -> None:
    """All is refused but one document that was not among the candidates."""
    data = texts_as_data(["q"], ["p", "n0", "n1", "N0!", "other"], [[0]])
    candidates = Candidates(
        data=data,
        queries=np.array([0]),
        documents=torch.tensor([[1, 2, NO_DOCUMENT]]),
        scores=torch.tensor([[0.5, 0.4, np.nan]]),
        ranks=torch.tensor([[1, 2, 0]]),
        positive_scores=torch.tensor([0.3]),
        positive_offsets=torch.tensor([0, 1]),
        kept=torch.tensor([[False, False, False]]),
    )
    filled, _, counts = settle_short_rows(*_with(candidates, 3), seed=0)
    assert filled.documents.tolist() == [[4, NO_DOCUMENT, NO_DOCUMENT]]
    assert counts["rows still short"] == 1
    assert counts["filled at random"] == 1


def _with(candidates: Candidates, count: int) -> tuple[Drawn, Candidates, str, Copies]:
    drawn, copies = drawn_from(candidates, count)
    return drawn, candidates, "random", copies


def without_candidates(queries: list[str], documents: list[str], positives: list[list[int]], **more) -> Candidates:
    data = texts_as_data(queries, documents, positives, **more)
    count = len(queries)
    return Candidates(
        data=data,
        queries=np.arange(count),
        documents=torch.full((count, 2), NO_DOCUMENT),
        scores=torch.full((count, 2), torch.nan),
        ranks=torch.zeros(count, 2, dtype=torch.int64),
        positive_scores=torch.zeros(data.positives.size),
        positive_offsets=torch.from_numpy(data.positive_offsets),
        kept=torch.zeros(count, 2, dtype=torch.bool),
    )


def test_nothing_that_answers_fills_a_row() -> None:
    long = " ".join(f"word{n}" for n in range(60))
    documents = ["yes", "Yes.", "q?", long, f"{long} more", "same class", "fine", "not searched"]
    candidates = without_candidates(
        ["q"], documents, [[0, 3]], num_searched=7, query_labels=[1], document_labels=[1, NO_LABEL, 2, 2, 2, 1, 2, 2]
    )
    filled, _, _ = settle_short_rows(*_with(candidates, 4))
    assert filled.documents.tolist() == [[6, NO_DOCUMENT, NO_DOCUMENT, NO_DOCUMENT]]


def test_copies_of_each_other_do_not_fill_a_row_together() -> None:
    candidates = without_candidates(["q"], ["p", "n", "N", "n!", "N."], [[0]])
    filled, _, _ = settle_short_rows(*_with(candidates, 3))
    assert (filled.documents != NO_DOCUMENT).sum() == 1


def test_fillers_are_uniform_and_a_function_of_seed_and_query() -> None:
    count = 3000
    candidates = without_candidates(
        [f"q{n}" for n in range(count)], [f"d{n}" for n in range(8)], [[n % 2] for n in range(count)]
    )
    filled, _, _ = settle_short_rows(*_with(candidates, 3), seed=1)
    seen = Counter(filled.documents[::2].ravel().tolist())  # never document 0
    assert sorted(seen) == [1, 2, 3, 4, 5, 6, 7]
    expected = 1500 * 3 / 7
    assert all(abs(number - expected) < 4.5 * expected**0.5 for number in seen.values())

    rows = [2999, 4, 17]
    apart, _, _ = settle_short_rows(*_with(part_of(candidates, rows), 3), seed=1)
    np.testing.assert_array_equal(apart.documents, filled.documents[rows])
    other, _, _ = settle_short_rows(*_with(candidates, 3), seed=2)
    assert (other.documents != filled.documents).any()


def test_an_unknown_policy_is_refused() -> None:
    drawn, copies = drawn_from(table(0), 2)
    with pytest.raises(ConfigError, match=r"miner.short_rows='fill': expected one of keep, drop, random"):
        settle_short_rows(drawn, table(0), "fill", copies)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    depth=st.integers(1, 12),
    count=st.integers(1, 8),
    how=st.sampled_from([("top", None), ("uniform", None), ("softmax", 0.1)]),
    policy=st.sampled_from(["keep", "random"]),
    share=st.floats(0, 1),
)
def test_no_negative_is_a_positive_of_its_query_or_twice_in_a_row(seed, depth, count, how, policy, share):
    """Whatever the data, the filters and the settings."""
    random = np.random.default_rng(seed)
    data = random_data(random, num_queries=4, num_documents=20)
    queries = np.arange(4)
    found = random_found(random, data, queries, width=15)
    copies = Copies(data.documents)
    candidates, _ = candidates_of(data, queries, found, *scores_of(data, queries), depth, copies)
    candidates.kept &= torch.from_numpy(random.random(candidates.kept.shape) < share)
    drawn = draw_negatives(candidates, count, *how, seed=1)
    rows, _, _ = settle_short_rows(drawn, candidates, policy, copies, seed=1)
    for query in range(4):
        negatives = [document for document in rows.documents[query].tolist() if document != NO_DOCUMENT]
        positives = data.positives_of(query).tolist()
        texts = {copy_id(data.documents[document]) for document in negatives}
        assert len(set(negatives)) == len(negatives)
        assert not set(negatives) & set(positives)
        assert not texts & {copy_id(data.documents[document]) for document in positives}
        assert copy_id(data.queries[query]) not in texts
        assert max(negatives, default=0) < data.num_searched
        refused = candidates.documents[query][~candidates.kept[query]].tolist()
        assert not set(negatives) & set(refused)
        near = [(n, p) for n in negatives for p in positives]
        assert not copies.near(*np.array(near, dtype=np.int64).reshape(-1, 2).T).any()
        if policy == "random" and (rows.documents[query] == NO_DOCUMENT).any():
            # Everything that would be left is a copy of what is there or was refused, or near a positive.
            known = texts | {copy_id(data.documents[d]) for d in [*positives, *refused] if d != NO_DOCUMENT}
            known.add(copy_id(data.queries[query]))
            for document in range(data.num_searched):
                is_near = copies.near(np.full(len(positives), document), np.array(positives)).any()
                assert is_near or copy_id(data.documents[document]) in known
