import logging
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.records import NO_DOCUMENT
from embedtrain.mining.search.exact import Exact
from embedtrain.mining.search.faiss import FaissFlat, FaissHNSW, FaissIVF, FaissPQ
from tests.helpers.ranks import run_ranks
from tests.mining.search.stand_ins import assert_same, joined, request, score, slow_top, unit

KINDS = {
    "flat": FaissFlat(),
    "ivf": FaissIVF(nlist=8, nprobe=4),
    "hnsw": FaissHNSW(m=8, ef_construction=40, ef_search=40),
    "pq": FaissPQ(nlist=8, nprobe=4, m=4, bits=4),
}


def clustered(count: int, seed: int) -> np.ndarray:
    """Around 16 centres, as texts of topics are."""
    generator = np.random.default_rng(seed)
    values = unit(16, 32, seed=99)[generator.integers(0, 16, count)] + 0.1 * unit(count, 32, seed=seed)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread():
    faiss.omp_set_num_threads(1)


def test_flat_finds_what_the_exact_search_finds(tmp_path):
    queries, documents = unit(30, 24, seed=0), unit(700, 24, seed=1)
    documents[50] = documents[40]
    search = FaissFlat()
    found = search.top(request(queries, documents, tmp_path, num_searched=600), 12)
    assert_same(found, Exact().top(request(queries, documents, tmp_path, num_searched=600), 12))
    assert search.facts()["recall"] == 1.0
    assert search.facts()["recall_queries"] == 30


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_exact_and_their_order_is_that_of_the_answer(tmp_path, kind):
    """PQ compares codes; what it returns does not."""
    queries, documents = clustered(20, seed=0), clustered(800, seed=1)
    found = KINDS[kind].top(request(queries, documents, tmp_path), 9)
    for row, query in enumerate(queries):
        numbers = found.documents[row].tolist()
        assert len(set(numbers)) == 9
        assert found.scores[row].tolist() == [score(query, documents[number]) for number in numbers]
        assert found.scores[row].tolist() == sorted(found.scores[row].tolist(), reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_the_share_of_the_true_best_that_was_found(tmp_path, kind, caplog):
    queries, documents = clustered(50, seed=0), clustered(800, seed=1)
    with caplog.at_level(logging.INFO, logger="embedtrain"):
        found = KINDS[kind].top(request(queries, documents, tmp_path), 10)
    true = slow_top(queries, documents, 10).documents
    share = np.mean([np.isin(t, f).mean() for t, f in zip(true.numpy(), found.documents.numpy(), strict=True)])
    facts = KINDS[kind].facts()
    assert facts["recall"] == pytest.approx(share)
    assert share > 0.5
    assert f"faiss {kind} found {share:.4f} of the true 10 best of 50 queries" in caplog.text


def test_a_sample_of_the_queries_is_searched_exactly(tmp_path):
    queries, documents = unit(60, 32, seed=0), unit(800, 32, seed=1)
    few, other = (FaissIVF(nlist=8, nprobe=1, recall_sample=7, seed=seed) for seed in (0, 1))
    none = FaissIVF(nlist=8, nprobe=1, recall_sample=0)
    for search in (few, other, none):
        search.top(request(queries, documents, tmp_path), 10)
    assert few.facts()["recall_queries"] == 7
    assert few.facts()["recall"] != other.facts()["recall"]  # other queries
    assert none.facts()["recall"] is None


def test_more_lists_find_more(tmp_path):
    queries, documents = unit(40, 16, seed=0), unit(900, 16, seed=1)
    recalls = []
    for nprobe in (1, 4, 16):
        search = FaissIVF(nlist=16, nprobe=nprobe)
        search.top(request(queries, documents, tmp_path), 10)
        recalls.append(search.facts()["recall"])
    assert recalls[0] < recalls[1] < recalls[2] == 1.0


def test_queries_that_find_too_little_are_counted(tmp_path):
    queries, documents = unit(20, 16, seed=0), unit(900, 16, seed=1)
    search = FaissIVF(nlist=16, nprobe=1)
    found = search.top(request(queries, documents, tmp_path), 200)
    missing = found.documents == NO_DOCUMENT
    assert missing.any()
    assert torch.equal(missing, found.scores.isnan())
    assert search.facts()["short_queries"] == int(missing.any(dim=1).sum())


def test_fewer_documents_than_asked_for(tmp_path):
    queries, documents = unit(3, 8, seed=0), unit(5, 8, seed=1)
    search = FaissHNSW()
    assert_same(search.top(request(queries, documents, tmp_path), 7), slow_top(queries, documents, 7))
    assert search.facts()["short_queries"] == 0


def test_the_number_of_lists_comes_from_the_size_and_is_said():
    assert FaissIVF().settings(1_000_000) == {"nlist": 4000, "nlist_derived": True, "nprobe": 32}
    assert FaissIVF(nlist=7).settings(10) == {"nlist": 7, "nlist_derived": False, "nprobe": 7}


@pytest.mark.parametrize("search", [FaissIVF(), FaissPQ(nlist=2)], ids=["ivf", "pq"])
def test_too_few_documents_to_train_on_point_to_the_exact_search(tmp_path, search):
    with pytest.raises(ConfigError, match=r"of 500 documents is trained .* \(search@miner\.search=exact\)"):
        search.top(request(unit(2, 16, seed=0), unit(500, 16, seed=1), tmp_path), 3)


def test_training_stays_within_the_cap(tmp_path):
    wanted = request(unit(2, 16, seed=0), unit(900, 16, seed=1), tmp_path)
    with pytest.raises(ConfigError, match=r"trained on at least 312, of which 260 fit into the cap"):
        FaissIVF(nlist=8).top(replace(wanted, max_memory=50_000), 3)


def test_parts_must_divide_the_dimensions(tmp_path):
    with pytest.raises(ConfigError, match=r"5 parts do not divide vectors of 16 dimensions"):
        FaissPQ(m=5).top(request(unit(2, 16, seed=0), unit(50, 16, seed=1), tmp_path), 3)


@pytest.mark.parametrize(("kind", "wrong"), [(FaissIVF, "nprobe"), (FaissHNSW, "m"), (FaissPQ, "bits")])
def test_settings_below_one_are_refused(kind, wrong):
    with pytest.raises(ConfigError, match=rf"miner\.search\.{wrong}=0: expected at least 1"):
        kind(**{wrong: 0})


def test_the_same_seed_finds_the_same(tmp_path):
    queries, documents = clustered(20, seed=0), clustered(800, seed=1)
    found = [FaissPQ(nlist=8, nprobe=2, bits=4).top(request(queries, documents, tmp_path), 9) for _ in range(2)]
    assert_same(*found)


def test_nothing_half_written_keeps_the_name(tmp_path, monkeypatch):
    def full(index, path):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(
        DataError, match=r"flat\.faiss: the index cannot be written \(no space.* set another miner\.store"
    ):
        FaissFlat().top(request(unit(2, 8, seed=0), unit(9, 8, seed=1), tmp_path), 3)
    assert list(tmp_path.iterdir()) == []


def searches_of_a_rank(queries, documents, folder):
    faiss.omp_set_num_threads(1)
    results = []
    for name, search in KINDS.items():
        (Path(folder) / name).mkdir(exist_ok=True)
        results.append((search.top(request(queries, documents, Path(folder) / name), 9), search.facts()))
    with pytest.raises(ConfigError, match="is trained on at least"):  # raised on rank 0, told to all
        FaissIVF(nlist=100).top(request(queries, documents, Path(folder)), 9)
    return results


def test_ranks_read_one_index_and_search_for_their_own(tmp_path):
    queries, documents = clustered(21, seed=0), clustered(800, seed=1)
    parts = run_ranks(searches_of_a_rank, 2, queries, documents, str(tmp_path))
    for number, search in enumerate(KINDS.values()):
        assert_same(joined([part[number][0] for part in parts]), search.top(request(queries, documents, tmp_path), 9))
        assert parts[0][number][1] == parts[1][number][1] == search.facts()
