from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.mining.records import NO_DOCUMENT
from embedtrain.mining.search.bm25 import BM25
from embedtrain.mining.search.exact import Exact
from embedtrain.mining.search.hybrid import Hybrid
from embedtrain.mining.vectors import ArrayVectors
from tests.helpers.ranks import run_ranks
from tests.mining.search.stand_ins import lexical_request, score, unit
from tests.mining.search.test_bm25 import texts


def both(folder: Path, num_searched: int = 50):
    """A request with texts and vectors."""
    folder.mkdir(exist_ok=True)
    wanted = lexical_request(texts(12, 5, seed=0), texts(60, 12, seed=1), folder, num_searched=num_searched)
    return replace(wanted, queries=ArrayVectors(unit(12, 8, seed=2)), documents=ArrayVectors(unit(60, 8, seed=3)))


def slow_fusion(lists: list[list[int]], k: int, constant: float) -> list[tuple[float, int]]:
    fused: dict[int, float] = {}
    for numbers in lists:
        for place, number in enumerate(numbers, 1):
            if number != NO_DOCUMENT:
                fused[number] = fused.get(number, 0) + 1 / (constant + place)
    return sorted(((round(score, 12), number) for number, score in fused.items()), key=lambda x: (-x[0], x[1]))[:k]


@pytest.mark.parametrize("constant", [60, 0])
def test_the_order_is_that_of_the_fusion_and_scores_are_inner_products(tmp_path, constant):
    wanted = both(tmp_path / "a")
    dense, lexical = Exact(), BM25()
    lists = [dense.top(wanted, 9).documents.tolist(), lexical.top(wanted, 9).documents.tolist()]
    search = Hybrid(searches={"dense": Exact(), "words": BM25(), "none": None}, constant=constant)
    wanted = both(tmp_path / "b")
    found = search.top(wanted, 9)
    assert search.reads_vectors
    for row in range(12):
        expected = [number for _, number in slow_fusion([lists[0][row], lists[1][row]], 9, constant)]
        assert found.documents[row].tolist() == expected
        query = wanted.queries.array[row]
        assert found.scores[row].tolist() == [score(query, wanted.documents.array[number]) for number in expected]
    facts = search.facts()
    assert (facts["kind"], facts["searches"]["words"]["kind"]) == ("hybrid", "bm25")
    assert torch.equal(search.score_pairs(np.array([3]), found.documents[3, :1].numpy()), found.scores[3, :1])


def test_without_vectors_the_scores_are_the_fused_ones(tmp_path):
    wanted = lexical_request(texts(12, 5, seed=0), texts(60, 12, seed=1), tmp_path, num_searched=50)
    parts = {"plain": {}, "flat": {"b": 0.0}, "sharp": {"k1": 3.0}}
    search = Hybrid(searches={name: BM25(**settings) for name, settings in parts.items()})
    found = search.top(wanted, 9)
    assert not search.reads_vectors
    lists = []
    for name, settings in parts.items():
        (tmp_path / f"{name}_alone").mkdir()
        lists.append(BM25(**settings).top(replace(wanted, folder=tmp_path / f"{name}_alone"), 9).documents.tolist())
    for row in range(12):
        expected = slow_fusion([numbers[row] for numbers in lists], 9, 60)
        there = [n for n in found.documents[row].tolist() if n != NO_DOCUMENT]
        assert there == [number for _, number in expected]
        assert found.scores[row, : len(there)].tolist() == pytest.approx([s for s, _ in expected])
        assert found.scores[row, len(there) :].isnan().all()
        again = search.score_pairs(np.full(len(there), row), np.array(there, dtype=np.int64))
        assert again.tolist() == pytest.approx(found.scores[row, : len(there)].tolist())


def test_what_was_not_found_has_the_fused_score_of_the_places_where_it_would_be(tmp_path):
    documents = ["dog dog dog", "dog dog fox", "dog fox fox fox", "fox", "dog dog dog cat"]
    search = Hybrid(searches={"a": BM25(), "b": BM25(k1=0.5)})
    found = search.top(lexical_request(["dog"], documents, tmp_path, num_searched=4), 2)
    assert found.documents.tolist() == [[0, 1]]
    scores = search.score_pairs(np.zeros(6, dtype=np.int64), np.array([0, 1, 2, 3, 4, NO_DOCUMENT]))
    # Their places; below the end; without the word; a positive that the corpus lacks, second to the first; none.
    assert scores[:5].tolist() == pytest.approx([2 / 61, 2 / 62, 0, 0, 2 / 62])
    assert scores[5].isnan()


def test_fewer_than_two_searches_are_refused():
    with pytest.raises(ConfigError, match=r"expected two or more to fuse, got dense"):
        Hybrid(searches={"dense": Exact(), "words": None})
    with pytest.raises(ConfigError, match=r"constant=-1: expected 0 or more"):
        Hybrid(searches={"dense": Exact(), "words": BM25()}, constant=-1)


def test_what_one_search_holds_the_next_may_not(tmp_path):
    caps = []

    class Noted(Exact):
        def top(self, request, k):
            caps.append(request.max_memory)
            return super().top(request, k)

    Hybrid(searches={"a": Noted(), "b": Noted()}).top(both(tmp_path / "a"), 9)
    assert caps == [2**28, 2**28 - 12 * 9 * 12]


def search_of_a_rank(folder):
    search = Hybrid(searches={"dense": Exact(), "words": BM25()})
    return search.top(both(Path(folder)), 9)


def test_ranks_together_find_what_one_finds(tmp_path):
    parts = run_ranks(search_of_a_rank, 2, str(tmp_path / "two"))
    expected = search_of_a_rank(tmp_path / "one")
    assert torch.equal(torch.cat([part.documents for part in parts]), expected.documents)
    assert torch.equal(torch.cat([part.scores for part in parts]), expected.scores)
