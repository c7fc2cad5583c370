import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.search.exact import Exact
from embedtrain.mining.search.plan import Costs, plan
from embedtrain.mining.vectors import ArrayVectors
from tests.helpers.ranks import run_ranks
from tests.mining.search.stand_ins import assert_same, joined, request, score, slow_top, unit

CPU = torch.device("cpu")


def least_cap(wanted, k, folder=Path(".")):
    """What the refusal says."""
    with pytest.raises(ConfigError) as refusal:
        Exact().top(wanted, k)
    return int(re.search(r"holds at least ([\d,]+) bytes", str(refusal.value))[1].replace(",", ""))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 80),
    st.integers(1, 40),
    st.integers(1, 90),
    st.floats(1.0, 30.0),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_every_cap_finds_what_a_slow_loop_finds(num_queries, num_documents, dim, k, times_least, repeated, seed):
    queries, documents = unit(num_queries, dim, seed=seed), unit(num_documents, dim, seed=seed + 1)
    if repeated:  # whole groups of equal vectors, and many within rounding
        documents = documents[np.random.default_rng(seed).integers(0, 1 + num_documents // 8, num_documents)]
    tiny = request(queries, documents, Path("."), cap=100)
    cap = round(least_cap(tiny, k) * times_least)
    assert_same(Exact().top(request(queries, documents, Path("."), cap=cap), k), slow_top(queries, documents, k))


def test_equal_vectors_beyond_the_spare_places_are_ranked_by_number(tmp_path):
    """200 equal documents: which of them are among the best is not left to the rounding of blocks."""
    queries, documents = unit(5, 33, seed=0), unit(400, 33, seed=1)
    queries *= np.where(queries @ queries[2] > 0, -1, 1)[:, None]  # the others turn away from the third
    documents[100:300] = -queries[2]
    queries[2] *= -1
    search = Exact()
    assert_same(search.top(request(queries, documents, tmp_path), 20), slow_top(queries, documents, 20))
    assert search.facts() == {"kind": "exact", "documents": 400, "searched_twice": 1}


def test_documents_within_rounding_of_each_other_are_told_apart(tmp_path):
    """300 scores closer to each other than blocks are exact: the places are those of the scores, not of their errors."""
    queries, documents = unit(20, 64, seed=0), unit(500, 64, seed=1)
    documents[100:400] = queries.mean(axis=0) * 5 + 1e-7 * documents[100:400]
    assert_same(Exact().top(request(queries, documents, tmp_path), 30), slow_top(queries, documents, 30))


def test_a_second_search_is_needed_for_nothing_else(tmp_path):
    search = Exact()
    search.top(request(unit(300, 64, seed=0), unit(3000, 64, seed=1), tmp_path), 10)
    assert search.facts()["searched_twice"] == 0


def test_products_of_blocks_are_as_wrong_as_assumed_and_no_more():
    """Numbers of all sizes and signs. The room that is left for rounding is what settles an answer."""
    generator = np.random.default_rng(0)
    left, right = (
        (generator.standard_normal((200, 768)) * 10 ** generator.uniform(-3, 3, (200, 768))).astype(np.float32)
        for _ in range(2)
    )
    exact = left.astype(np.float64) @ right.astype(np.float64).T
    wrong = np.abs((torch.from_numpy(left) @ torch.from_numpy(right).T).double().numpy() - exact)
    slack = 4 * 768**0.5 * 2**-24 * np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    assert (wrong < slack / 2).all()
    assert wrong.max() > 0


def test_scores_are_rounded_once(tmp_path):
    queries, documents = unit(4, 100, seed=0), unit(9, 100, seed=1)
    search = Exact()
    found = search.top(request(queries, documents, tmp_path), 9)
    for row, query in enumerate(queries):
        for place, document in enumerate(found.documents[row].tolist()):
            assert found.scores[row, place].item() == score(query, documents[document])
    again = search.score_pairs(np.repeat(np.arange(4), 9), found.documents.flatten().numpy())
    assert torch.equal(again, found.scores.flatten())


def test_what_the_corpus_lacks_is_scored_and_never_found(tmp_path):
    queries, documents = unit(3, 8, seed=0), unit(10, 8, seed=1)
    documents[9] = queries[0]
    search = Exact()
    found = search.top(request(queries, documents, tmp_path, num_searched=6), 20)
    assert_same(found, slow_top(queries, documents[:6], 20))
    assert search.score_pairs(np.array([0, 0]), np.array([9, -1]))[0] == score(queries[0], documents[9])
    assert search.score_pairs(np.array([0, 0]), np.array([9, -1]))[1].isnan()


@pytest.mark.parametrize(("num_queries", "num_documents"), [(1, 1), (0, 5), (3, 1)])
def test_next_to_nothing(tmp_path, num_queries, num_documents):
    queries, documents = unit(num_queries, 8, seed=0), unit(num_documents, 8, seed=1)
    assert_same(Exact().top(request(queries, documents, tmp_path), 3), slow_top(queries, documents, 3))


# ------------------------------------------------------------------------------------------------------- the cap


def test_the_least_that_works_works_and_one_byte_less_does_not(tmp_path):
    queries, documents = unit(7, 16, seed=0), unit(30, 16, seed=1)
    least = least_cap(request(queries, documents, tmp_path, cap=1), 5)
    assert_same(Exact().top(request(queries, documents, tmp_path, cap=least), 5), slow_top(queries, documents, 5))
    with pytest.raises(ConfigError, match=r"miner\.max_memory_gb: .* the cap is .* Raise miner\.max_memory_gb"):
        Exact().top(request(queries, documents, tmp_path, cap=least - 1), 5)


@given(
    st.integers(1, 10**6),
    st.integers(1, 10**8),
    st.integers(1, 4096),
    st.integers(1, 2000),
    st.integers(1, 64),
    st.floats(1, 10**4),
)
@settings(max_examples=200, deadline=None)
def test_all_that_is_planned_is_within_the_cap(num_queries, num_documents, dim, k, ranks, times_least):
    costs = Costs(dim, k + 16, ranks)
    own = -(-num_queries // ranks)
    result = (16 * k + 32) * own
    cap = round((result + costs.least()) * times_least)
    sizes = plan(num_queries, num_documents, own, k, costs, cap, CPU)
    work = max(costs.block(sizes.block, sizes.tile), sizes.merged * costs.merged, sizes.pairs * costs.pair)
    assert result + sizes.group * costs.query + sizes.chunk * costs.document + work <= cap
    assert min(sizes.group, sizes.chunk, sizes.block, sizes.tile, sizes.merged, sizes.pairs) >= 1


def test_a_usual_cap_takes_a_hundred_thousand_queries_at_once():
    """2 GiB, 384 dimensions, 100 candidates: one pass over the documents."""
    sizes = plan(80_000, 10**6, 80_000, 110, Costs(384, 126, 1), 2 * 2**30, CPU)
    assert sizes.group == 80_000
    assert (sizes.block, sizes.tile, sizes.chunk) == (512, 1024, 16384)


class Counted(ArrayVectors):
    """Remembers the most rows that were read at once."""

    most = 0

    def rows(self, index):
        rows = super().rows(index)
        self.most = max(self.most, len(rows))
        return rows


def test_a_small_cap_reads_few_rows_at_a_time(tmp_path):
    wanted = request(unit(200, 16, seed=0), unit(500, 16, seed=1), tmp_path, cap=200_000)
    object.__setattr__(wanted, "documents", Counted(wanted.documents.array))
    found = Exact().top(wanted, 10)
    assert wanted.documents.most <= 210
    assert_same(found, slow_top(wanted.queries.array, wanted.documents.array, 10))


# -------------------------------------------------------------------------------------------------------- ranks


def search_share(queries, documents, num_searched, caps, k):
    return [Exact().top(request(queries, documents, Path("."), num_searched=num_searched, cap=cap), k) for cap in caps]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_find_what_one_finds(ranks):
    queries, documents = unit(11, 24, seed=0), unit(90, 24, seed=1)
    documents[20:60] = documents[19]  # ties across ranks
    caps = [2**28, 150_000]
    parts = run_ranks(search_share, ranks, queries, documents, 80, caps, 13)
    for number in range(len(caps)):
        assert_same(joined([part[number] for part in parts]), slow_top(queries, documents[:80], 13))


def test_more_ranks_than_documents_and_queries():
    queries, documents = unit(1, 4, seed=0), unit(2, 4, seed=1)
    parts = run_ranks(search_share, 3, queries, documents, 2, [2**28], 4)
    assert_same(joined([part[0] for part in parts]), slow_top(queries, documents, 4))


# ------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(tmp_path, broken):
    queries, documents = unit(4, 8, seed=0), unit(20, 8, seed=1)
    documents[3, 2] = broken
    with pytest.raises(DataError, match="toy: the vector of a document is not finite"):
        Exact().top(request(queries, documents, tmp_path), 3)
    queries[1, 0] = broken
    with pytest.raises(DataError, match="toy: the vector of the query 'query 1' is not finite"):
        Exact().top(request(queries, documents, tmp_path), 3)
