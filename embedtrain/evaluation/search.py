"""Exact top-k search: every query against every document, in memory bounded by the chunk.

Documents come in chunks of C, queries are taken in blocks of B. Beyond the queries themselves [Q, E] and the chunk at hand
[C, E] there are, in fp32 and int64 at any time,

    B x T x 4 bytes     similarities of one block with a tile of T documents of the chunk: inner products, or MaxSim
                        (maxsim.py) with the whole chunk where a text has several vectors
    Q x 2k x 12 bytes   the best so far, and room for what may join them

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

# Of similarities that exist at a time. On a CPU they stay in the cache between the product and the look through it.
QUERY_BLOCK = 512
DOCUMENT_TILE = 1024
DOCUMENT_TILE_GPU = 32768
STRETCH = 32  # documents


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
    best = BestSoFar(len(asked), k, asked.values.device)
    start = 0
    with full_precision(asked.values.device):
        for chunk in chunks:
            for first_query, first_document, similarity in _similarities(asked, _embeddings(chunk), query_block):
                best.add(similarity, first_query, start + first_document)
            start += len(chunk)
            del chunk  # before the next one is made
    return best.result(start)


def _embeddings(vectors: Embeddings | Tensor) -> Embeddings:
    return vectors if isinstance(vectors, Embeddings) else Embeddings(vectors)


def _similarities(queries: Embeddings, documents: Embeddings, query_block: int) -> Iterator[tuple[int, int, Tensor]]:
    """(first query, first document, [B, T]) of every block of queries, for a tile of the documents after the other."""
    device = queries.values.device
    documents = documents.map(lambda values: values.to(device, torch.float32))
    if queries.offsets is not None:
        first = 0
        for similarity in maxsim_blocks(queries, documents, query_block):
            yield first, 0, similarity
            first += len(similarity)
    else:
        yield from inner_products(queries.values, documents.values, query_block)


def inner_products(
    queries: Tensor, documents: Tensor, query_block: int = QUERY_BLOCK, document_tile: int | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """(first query, first document, [B, T]) of every block of queries [Q, E], for a tile of documents [D, E] after the other.

    All of them lie in one piece of memory: what was given before is overwritten.
    """
    tile = document_tile or (DOCUMENT_TILE if queries.device.type == "cpu" else DOCUMENT_TILE_GPU)
    memory = queries.new_empty(min(query_block, len(queries)) * min(tile, len(documents)))
    for first_document in range(0, len(documents), tile):
        some = documents[first_document : first_document + tile].to(queries.dtype)
        for first_query in range(0, len(queries), query_block):
            block = queries[first_query : first_query + query_block]
            similarity = memory[: len(block) * len(some)].view(len(block), len(some))
            yield first_query, first_document, torch.mm(block, some.T, out=similarity)


class BestSoFar:
    """The k best documents of each of Q queries, while similarities come block by block, a query's documents in their order.

    A row holds its k best and room for others. What is better than the row's k-th joins it, which after the first few
    blocks is next to nothing, so that a block costs little more than a look at its maxima. A row that is full is sorted
    and cut. A document ranks behind earlier ones of equal score: the order in which they came does that by itself.

    Memory: Q x (2k x 12 + 12) bytes.
    """

    def __init__(self, num_queries: int, k: int, device: torch.device) -> None:
        self.k = k
        self.scores = torch.full((num_queries, 2 * k), -torch.inf, device=device)
        self.indices = torch.zeros((num_queries, 2 * k), dtype=torch.int64, device=device)
        self.filled = torch.zeros(num_queries, dtype=torch.int64, device=device)
        self.least = torch.full((num_queries,), -torch.inf, device=device)  # to be passed; the k-th score or less

    def add(self, similarity: Tensor, first_query: int, first_document: int) -> None:
        """`similarity` [B, T] of neighbouring queries with neighbouring documents, all of which come after those before."""
        rows = slice(first_query, first_query + len(similarity))
        if first_document < self.k:
            self._merge(similarity, rows, first_document)
        elif not self._join(similarity, rows, first_document):
            self._cut(rows)
            if not self._join(similarity, rows, first_document):
                self._merge(similarity, rows, first_document)

    def result(self, num_documents: int, block: int = QUERY_BLOCK) -> tuple[Tensor, Tensor]:
        """Scores and indices [Q, min(k, D)] after `num_documents`, best first. `block`: queries sorted at a time."""
        for first in range(0, len(self.filled), block):
            self._cut(slice(first, first + block))
        size = min(self.k, num_documents)
        return self.scores[:, :size].clone(), self.indices[:, :size].clone()

    def _join(self, similarity: Tensor, rows: slice, first_document: int) -> bool:
        """Adds what passes, unless some row has no room for it."""
        least = self.least[rows]
        # Most stretches of a row have nothing that passes. Their maxima are found at the speed of memory.
        stretch = STRETCH if similarity.shape[1] % STRETCH == 0 else 1
        stretches = similarity.view(len(similarity), -1, stretch)
        row, place = (stretches.amax(dim=2) > least[:, None]).nonzero(as_tuple=True)
        some = stretches[row, place]
        which, inside = (some > least[row, None]).nonzero(as_tuple=True)  # row by row, documents in their order
        row, column = row[which], place[which] * stretch + inside
        counts, filled = torch.bincount(row, minlength=len(least)), self.filled[rows]
        if bool((filled + counts > 2 * self.k).any()):
            return False
        free = torch.arange(len(row), device=row.device) + (filled - counts.cumsum(0) + counts)[row]
        self.scores[rows.start + row, free] = some[which, inside]
        self.indices[rows.start + row, free] = column + first_document
        self.filled[rows] += counts
        return True

    def _merge(self, similarity: Tensor, rows: slice, first_document: int) -> None:
        """Adds the k best of the block: for the first ones, of which all pass. The rows hold no more than their best."""
        values, columns = _block_top_k(similarity, self.k)
        columns, order = columns.sort(dim=1)
        start = min(first_document, self.k)
        end = start + columns.shape[1]
        self.scores[rows, start:end] = values.gather(1, order)
        self.indices[rows, start:end] = columns + first_document
        self.filled[rows] = end
        self._cut(rows)

    def _cut(self, rows: slice) -> None:
        """Sorts rows and keeps the k best. Equal scores stay in their order, which is that of the documents."""
        k = self.k
        scores, order = self.scores[rows].sort(dim=1, descending=True, stable=True)
        self.scores[rows, :k], self.scores[rows, k:] = scores[:, :k], -torch.inf
        self.indices[rows, :k] = self.indices[rows].gather(1, order[:, :k])
        self.filled[rows] = self.filled[rows].clamp(max=k)
        self.least[rows] = scores[:, k - 1]


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
def full_precision(device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
