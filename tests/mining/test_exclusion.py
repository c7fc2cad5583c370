"""What goes before candidates are ranked, against a loop over everything that was found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.mining.exclusion import WHY, candidates_of
from embedtrain.mining.near_duplicates import Copies, copy_id
from embedtrain.mining.records import NO_DOCUMENT, Found, MiningData
from tests.mining.filters.tables import texts_as_data

WORDS = ["red", "blue", "green", "old", "new"]


def random_data(random: np.random.Generator, num_queries: int, num_documents: int) -> MiningData:
    """Every text once, among them copies, near-duplicates and queries; several positives each, some of them not searched."""
    made: dict[str, None] = {}
    while len(made) < num_documents:
        text = list(random.choice(WORDS, random.integers(1, 9)))
        made |= dict.fromkeys([" ".join(text), "-".join(text).title(), " ".join([*text, "today"])])
    documents = list(made)[:num_documents]
    random.shuffle(documents)
    queries = [str(random.choice(documents)) + "?" * int(random.integers(0, 2)) for _ in range(num_queries)]
    positives = [
        np.sort(random.choice(len(documents), random.integers(1, 5), replace=False)).tolist()
        for _ in range(num_queries)
    ]
    return texts_as_data(queries, documents, positives, num_searched=len(documents) - 2)


def random_found(random: np.random.Generator, data: MiningData, queries: np.ndarray, width: int) -> Found:
    documents = np.full((queries.size, width), NO_DOCUMENT)
    scores = np.full((queries.size, width), np.nan, dtype=np.float32)
    for row in range(queries.size):
        there = min(data.num_searched, int(random.integers(0, width + 1)))
        documents[row, :there] = random.permutation(data.num_searched)[:there]
        scores[row, :there] = np.sort(random.random(there))[::-1]
    return Found(torch.from_numpy(documents), torch.from_numpy(scores))


def scores_of(data: MiningData, queries: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    counts = [len(data.positives_of(int(query))) for query in queries]
    offsets = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)
    return torch.rand(int(offsets[-1])), offsets


def reason(data: MiningData, query: int, document: int, copies: Copies) -> str | None:
    """Why a document goes, from the definitions."""
    own = data.positives_of(query).tolist()
    text = data.documents[document]
    if document in own:
        return "positive"
    if copy_id(text) == copy_id(data.queries[query]):
        return "the query itself"
    if any(copy_id(text) == copy_id(data.documents[p]) for p in own):
        return "copy of a positive"
    if any(copies.near(np.array([document]), np.array([p]))[0] for p in own):
        return "near-duplicate of a positive"
    return None


@pytest.mark.parametrize("threshold", [0.5, None])
@pytest.mark.parametrize("depth", [1, 4, 100])
def test_candidates_are_those_of_a_loop(depth: int, threshold: float | None) -> None:
    total = dict.fromkeys(WHY, 0)
    for seed in range(12):
        random = np.random.default_rng(seed)
        data = random_data(random, num_queries=9, num_documents=40)
        queries = random.permutation(9)[:7].astype(np.int64)
        found = random_found(random, data, queries, width=25)
        positive_scores, offsets = scores_of(data, queries)
        copies = Copies(data.documents, threshold)
        candidates, counts = candidates_of(data, queries, found, positive_scores, offsets, depth, copies)

        wanted = dict.fromkeys(WHY, 0)
        assert candidates.documents.shape == (7, min(depth, 25))
        for row, query in enumerate(queries.tolist()):
            left = []
            for document, score in zip(found.documents[row].tolist(), found.scores[row].tolist(), strict=True):
                why = (
                    None
                    if document == NO_DOCUMENT
                    else reason(data, query, document, Copies(data.documents, threshold))
                )
                if why is not None:
                    wanted[why] += 1
                elif document != NO_DOCUMENT:
                    left.append((document, score))
            left = left[:depth]
            there = len(left)
            assert candidates.documents[row, :there].tolist() == [document for document, _ in left]
            assert candidates.scores[row, :there].tolist() == [score for _, score in left]
            assert candidates.ranks[row, :there].tolist() == list(range(1, there + 1))
            assert candidates.kept[row, :there].all()
            assert (candidates.documents[row, there:] == NO_DOCUMENT).all()
            assert candidates.scores[row, there:].isnan().all()
            assert (candidates.ranks[row, there:] == 0).all()
            assert not candidates.kept[row, there:].any()
        assert counts == wanted
        assert candidates.queries is queries
        assert candidates.positive_scores is positive_scores
        total = {name: total[name] + count for name, count in wanted.items()}
    assert all(count > 5 for name, count in total.items() if threshold or not name.startswith("near")), total


def test_pairs_are_compared_in_turns_without_a_difference(monkeypatch) -> None:
    random = np.random.default_rng(0)
    data = random_data(random, num_queries=9, num_documents=40)
    queries = np.arange(9)
    found = random_found(random, data, queries, width=25)
    arguments = (data, queries, found, *scores_of(data, queries), 20)
    whole, counts = candidates_of(*arguments, Copies(data.documents, 0.5))
    for size in (1, 3, 50):
        monkeypatch.setattr("embedtrain.mining.exclusion._PAIRS_AT_ONCE", size)
        again, same = candidates_of(*arguments, Copies(data.documents, 0.5))
        assert torch.equal(again.documents, whole.documents)
        assert same == counts


def test_siblings_from_all_rows_of_a_query_are_out() -> None:
    """NeMo's issue 3021: one row's positive was another row's negative."""
    data = texts_as_data(["q"], ["a", "b", "c", "d"], [[0, 1, 2]])
    found = Found(torch.tensor([[2, 1, 3, 0]]), torch.tensor([[0.9, 0.8, 0.7, 0.6]]))
    candidates, counts = candidates_of(
        data, np.array([0]), found, *scores_of(data, np.array([0])), 4, Copies(data.documents)
    )
    assert candidates.documents.tolist() == [[3, NO_DOCUMENT, NO_DOCUMENT, NO_DOCUMENT]]
    assert candidates.ranks.tolist() == [[1, 0, 0, 0]]
    assert counts == {
        "positive": 3,
        "the query itself": 0,
        "copy of a positive": 0,
        "near-duplicate of a positive": 0,
    }


def test_a_query_that_is_its_own_positive_counts_as_positive() -> None:
    data = texts_as_data(["same"], ["same", "Same!", "other"], [[0]])
    found = Found(torch.tensor([[0, 1, 2]]), torch.tensor([[0.9, 0.8, 0.7]]))
    candidates, counts = candidates_of(
        data, np.array([0]), found, *scores_of(data, np.array([0])), 3, Copies(data.documents)
    )
    assert candidates.documents.tolist() == [[2, NO_DOCUMENT, NO_DOCUMENT]]
    assert [counts[name] for name in WHY] == [1, 1, 0, 0]


def test_blocks_without_queries_or_finds_stay_empty() -> None:
    data = texts_as_data(["q"], ["a", "b"], [[0]])
    nothing = Found(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))
    none = np.zeros(0, dtype=np.int64)
    candidates, counts = candidates_of(data, none, nothing, *scores_of(data, none), 2, Copies(data.documents))
    assert candidates.documents.shape == (0, 2)
    assert sum(counts.values()) == 0
    short = Found(torch.full((1, 3), NO_DOCUMENT), torch.full((1, 3), torch.nan))
    candidates, _ = candidates_of(
        data, np.array([0]), short, *scores_of(data, np.array([0])), 2, Copies(data.documents)
    )
    assert not candidates.kept.any()


def test_a_search_that_finds_a_document_twice_is_a_broken_search() -> None:
    data = texts_as_data(["q", "r"], ["a", "b", "c"], [[0], [0]])
    found = Found(torch.tensor([[1, 2], [2, 2]]), torch.zeros(2, 2))
    queries = np.array([0, 1])
    with pytest.raises(AssertionError, match="returned a document twice"):
        candidates_of(data, queries, found, *scores_of(data, queries), 2, Copies(data.documents))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_no_candidate_is_a_positive_or_says_the_same_as_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    data = random_data(random, num_queries=5, num_documents=25)
    queries = np.arange(5)
    found = random_found(random, data, queries, width=23)
    candidates, counts = candidates_of(data, queries, found, *scores_of(data, queries), 23, Copies(data.documents))
    for query in range(5):
        row = [d for d in candidates.documents[query].tolist() if d != NO_DOCUMENT]
        own = data.positives_of(query).tolist()
        assert not set(row) & set(own)
        assert not {copy_id(data.documents[d]) for d in row} & {copy_id(data.documents[p]) for p in own}
        assert len(set(row)) == len(row)
    assert int(candidates.kept.sum()) + sum(counts.values()) == int((found.documents != NO_DOCUMENT).sum())
