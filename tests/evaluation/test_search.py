import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.distributed import rank, world_size
from embedtrain.evaluation.search import BestSoFar, merge_over_ranks, top_k
from tests.helpers.ranks import run_ranks


def slow_top_k(queries, documents, k):
    """By score from the top, equal scores by index from the bottom."""
    rows = []
    for query in queries.double():
        scores = [float((query * document).sum()) for document in documents.double()]
        rows.append(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])
    return torch.tensor(rows)


def whole_numbers(*shape, high, seed):
    """Vectors whose products are exact in fp32, so that ties are ties whatever the order of the sum."""
    return torch.randint(-high, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("high", [1, 1000])  # 1: nearly all scores are tied
@pytest.mark.parametrize("chunk", [1, 3, 7, 40, 100])
@pytest.mark.parametrize("k", [1, 5, 40, 60])
def test_every_chunk_size_finds_what_a_slow_loop_finds(high, chunk, k):
    queries, documents = whole_numbers(9, 6, high=high, seed=1), whole_numbers(40, 6, high=high, seed=2)
    scores, indices = top_k(queries, documents.split(chunk), k, query_block=4)
    assert torch.equal(indices, slow_top_k(queries, documents, k))
    assert torch.equal(scores, (queries @ documents.T).gather(1, indices))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 60), st.integers(1, 20), st.integers(1, 70), st.integers(0, 10**6))
def test_ties_go_to_the_first_documents(num_queries, num_documents, chunk, k, seed):
    queries = whole_numbers(num_queries, 2, high=1, seed=seed)
    documents = whole_numbers(num_documents, 2, high=1, seed=seed + 1)
    _, indices = top_k(queries, documents.split(chunk), k)
    assert torch.equal(indices, slow_top_k(queries, documents, k))


def test_one_tensor_is_one_chunk():
    queries, documents = torch.randn(3, 4), torch.randn(10, 4)
    assert torch.equal(top_k(queries, documents, 4)[1], top_k(queries, [documents], 4)[1])


def test_no_documents_give_no_columns():
    scores, indices = top_k(torch.randn(3, 4), [], 5)
    assert scores.shape == indices.shape == (3, 0)


def test_autocast_and_tf32_do_not_reach_the_scores():
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 64, generator=generator) for n in (5, 50))
    expected = top_k(queries, documents, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = top_k(queries, documents, 10)
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_half_precision_embeddings_are_scored_in_fp32():
    queries, documents = torch.randn(5, 64).bfloat16(), torch.randn(50, 64).bfloat16()
    scores, indices = top_k(queries, documents, 10)
    assert torch.equal(indices, slow_top_k(queries, documents, 10))
    assert scores.dtype == torch.float32


def test_chunks_are_let_go():
    """Memory is bounded by the chunk: when one is asked for, at most the one before it is still alive."""
    alive: list[weakref.ref] = []
    most = 0

    def chunks():
        nonlocal most
        for _ in range(10):
            most = max(most, sum(ref() is not None for ref in alive))
            chunk = torch.randn(20, 8)
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk

    top_k(torch.randn(3, 8), chunks(), 5)
    assert most <= 1


def search_share(queries, documents, k):
    mine = torch.arange(len(documents))[rank() :: world_size()]
    scores, indices = top_k(queries, documents[mine].split(4), k)
    return merge_over_ranks(scores, mine[indices], k)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_find_what_one_process_finds(ranks):
    queries, documents = whole_numbers(9, 4, high=2, seed=1), whole_numbers(31, 4, high=2, seed=2)
    expected = top_k(queries, documents, 12)  # on 4 ranks a share has fewer documents than that
    for scores, indices in run_ranks(search_share, ranks, queries, documents, 12):
        assert torch.equal(indices, expected[1])
        assert torch.equal(scores, expected[0])


def test_more_ranks_than_documents():
    queries, documents = whole_numbers(3, 4, high=2, seed=1), whole_numbers(2, 4, high=2, seed=2)
    for _, indices in run_ranks(search_share, 4, queries, documents, 5):
        assert torch.equal(indices, slow_top_k(queries, documents, 5))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 600),
    st.integers(1, 200),
    st.integers(1, 30),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_rows_that_fill_up_lose_nothing(num_queries, num_documents, chunk, k, better_and_better, seed):
    """Documents that come in rising order all pass, and rows are cut again and again; others hardly ever pass."""
    queries, documents = (whole_numbers(n, 3, high=9, seed=seed + n) for n in (num_queries, num_documents))
    if better_and_better:
        documents = documents[(documents @ queries[0]).argsort()]
    scores, indices = top_k(queries, documents.split(chunk), k, query_block=3)
    assert torch.equal(indices, slow_top_k(queries, documents, k))
    assert torch.equal(scores, (queries @ documents.T).gather(1, indices))


def test_documents_without_a_score_fill_the_last_places():
    """A text without vectors has MaxSim -inf, and is still a document."""
    best = BestSoFar(1, 3, torch.device("cpu"))
    best.add(torch.tensor([[-torch.inf, -torch.inf]]), 0, 0)
    best.add(torch.tensor([[-torch.inf, 1.0, -torch.inf]]), 0, 2)
    best.add(torch.tensor([[-torch.inf]]), 0, 5)
    assert best.result(6)[1].tolist() == [[3, 0, 1]]
