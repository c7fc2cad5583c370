"""Exact top-k search: every query against every document, in memory bounded by the chunk.

Documents come in chunks of C, queries are taken in blocks of B. Beyond the queries themselves [Q, E] and the chunk at hand
[C, E] there are, in fp32 and int64 at any time,

    B x C x 4 bytes     similarities of one block with one chunk: inner products, or MaxSim (maxsim.py) where a text has
                        several vectors
    Q x k x 12 bytes    the best so far

so neither Q x D similarities nor all document embeddings ever exist. Numbers are fp32 whatever autocast or
TF32 say outside: a ranking must not depend on the precision that training was given.

Equal scores are ranked by document index, so that a ranking is the same for every chunk size and every number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from embedtrain.distributed import gather_objects
from embedtrain.evaluation.maxsim import maxsim_blocks
from embedtrain.types import Embeddings

QUERY_BLOCK = 1024


@torch.no_grad()
def top_k(
    queries: Embeddings | Tensor,
    documents: Tensor | Iterable[Embeddings | Tensor],
    k: int,
    *,
    query_block: int = QUERY_BLOCK,
) -> tuple[Tensor, Tensor]:
    """The k documents of largest similarity to each query: inner product, or MaxSim between texts of several vectors.

    Args:
        queries: [Q, E], or Q texts, on the device where the search shall run.
        documents: [D, E], or chunks of C texts one after the other (each is moved to the device and dropped again).
        k: documents per query; all of them where there are fewer.

    Returns:
        scores [Q, min(k, D)] fp32, falling, and indices [Q, min(k, D)] int64 into the documents as they came.
    """
    chunks = [documents] if isinstance(documents, Tensor) else documents
    asked = _embeddings(queries).map(Tensor.float)
    device = asked.values.device
    scores = torch.empty(len(asked), 0, device=device)
    indices = torch.empty(len(asked), 0, dtype=torch.int64, device=device)
    start = 0
    with _full_precision(device):
        for chunk in chunks:
            found = [_block_top_k(block, k) for block in _similarities(asked, _embeddings(chunk), query_block)]
            scores = torch.cat([scores, torch.cat([s for s, _ in found])], dim=1)
            indices = torch.cat([indices, torch.cat([i for _, i in found]) + start], dim=1)
            scores, indices = rank(scores, indices, k)
            start += len(chunk)
    return scores, indices


def _embeddings(vectors: Embeddings | Tensor) -> Embeddings:
    return vectors if isinstance(vectors, Embeddings) else Embeddings(vectors)


def _similarities(queries: Embeddings, documents: Embeddings, query_block: int) -> Iterator[Tensor]:
    """[B, C] of every block of queries."""
    documents = documents.map(lambda values: values.to(queries.values.device, torch.float32))
    if queries.offsets is not None:
        yield from maxsim_blocks(queries, documents, query_block)
    else:
        for block in queries.values.split(query_block):
            yield block @ documents.values.T


def rank(scores: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the candidates [Q, M] of each query, by score from the top, equal scores by index from the bottom."""
    by_index = indices.argsort(dim=1)
    scores, indices = scores.gather(1, by_index), indices.gather(1, by_index)
    by_score = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, by_score), indices.gather(1, by_score)


def merge_over_ranks(scores: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best among what every rank found, on every rank and on its own device; `indices` must already be global.

    Each rank has searched its own documents for the same queries: [Q, M_r] with M_r <= k. Needs W x Q x k x 12 bytes.
    """
    parts = gather_objects((scores.cpu(), indices.cpu()))
    merged = rank(torch.cat([s for s, _ in parts], dim=1), torch.cat([i for _, i in parts], dim=1), k)
    return merged[0].to(scores.device), merged[1].to(scores.device)


def _block_top_k(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of each row of [B, C], in any order, ties at the k-th place going to the smallest columns.

    `torch.topk` picks among equals as it likes. Asking it for one more shows the rows where that matters; they are few,
    and are sorted in full.
    """
    if k >= similarity.shape[1]:
        columns = torch.arange(similarity.shape[1], device=similarity.device)
        return similarity, columns.expand_as(similarity)
    values, columns = similarity.topk(k + 1, dim=1)
    tied = (values[:, k] == values[:, k - 1]).nonzero().squeeze(1)
    values, columns = values[:, :k].contiguous(), columns[:, :k].contiguous()
    if len(tied):
        ordered = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    return values, columns


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
