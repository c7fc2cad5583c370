"""Exact top-k search: every query against every document, in memory bounded by the chunk.

Documents come in chunks of C, queries are taken in blocks of B. Beyond the queries themselves [Q, E] and the chunk at hand
[C, E] there are, in fp32 and int64 at any time,

    B x C x 4 bytes     similarities of one block with one chunk
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

QUERY_BLOCK = 1024


@torch.no_grad()
def top_k(
    queries: Tensor, documents: Tensor | Iterable[Tensor], k: int, *, query_block: int = QUERY_BLOCK
) -> tuple[Tensor, Tensor]:
    """The k documents of largest inner product with each query.

    Args:
        queries: [Q, E], on the device where the search shall run.
        documents: [D, E], or chunks [C, E] one after the other (each is moved to the device and dropped again).
        k: documents per query; all of them where there are fewer.

    Returns:
        scores [Q, min(k, D)] fp32, falling, and indices [Q, min(k, D)] int64 into the documents as they came.
    """
    chunks = [documents] if isinstance(documents, Tensor) else documents
    queries = queries.float()
    scores = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    start = 0
    with _full_precision(queries.device):
        for chunk in chunks:
            chunk = chunk.to(queries.device, torch.float32)
            found = [_block_top_k(block @ chunk.T, k) for block in queries.split(query_block)]
            scores = torch.cat([scores, torch.cat([s for s, _ in found])], dim=1)
            indices = torch.cat([indices, torch.cat([i for _, i in found]) + start], dim=1)
            scores, indices = rank(scores, indices, k)
            start += len(chunk)
    return scores, indices


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
