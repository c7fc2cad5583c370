"""What a run says about itself: what a query is contrasted with, and how fast it goes."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain import distributed
from embedtrain.data.chunking import chunks
from embedtrain.losses.relation import RelationReader
from embedtrain.types import Relation, TokenBatch


@dataclass(frozen=True)
class BatchFacts:
    """One step, over all ranks and micro-batches. Negatives are means per query, after duplicates are left out."""

    queries: int
    documents: int
    positives: float
    hard_negatives: float
    in_batch_negatives: float
    cross_device_negatives: float
    ignored: float  # pairs per query that are left out as the same answer seen again
    tokens: int
    truncated: int
    padding_share: float  # of the tokens that attention reads, padding; 0 on the ragged path
    in_batch: bool = True  # whether the loss reads in-batch negatives; if not, there are none

    @property
    def truncated_share(self) -> float:
        return self.truncated / (self.queries + self.documents)

    @property
    def negatives(self) -> float:
        """All negatives of a query: the width of its softmax without the positive."""
        return self.hard_negatives + self.in_batch_negatives + self.cross_device_negatives

    def line(self) -> str:
        negatives = (
            f"{self.in_batch_negatives:,.1f} in-batch + {self.cross_device_negatives:,.1f} cross-device negatives"
            if self.in_batch
            else "no in-batch negatives, which the loss leaves out"
        )
        return (
            f"first step: {self.queries:,} queries, each with {self.positives:,.1f} positives, {self.hard_negatives:,.1f} hard "
            f"negatives, {negatives} ({self.ignored:,.1f} duplicates left out); {self.documents:,} documents, "
            f"{self.tokens:,} tokens, {self.truncated_share:.1%} of texts truncated, {self.padding_share:.1%} padding"
        )


def batch_facts(
    micro_batches: Sequence[TokenBatch],
    *,
    in_batch: bool = True,
    padded_chunk_tokens: int | None = None,
    gather: bool = True,
) -> BatchFacts:
    """Count what the queries of one step are contrasted with. Every rank calls it; every rank gets the same answer.

    `in_batch`: whether the loss reads negatives of other queries.
    `gather`: whether a query is contrasted with the documents of all ranks, or of its own.
    `padded_chunk_tokens`: the budget of a chunk, where the backbone pads inside chunks; None: it does not pad.
    """
    pairs = Counter[str]()
    queries = documents = tokens = truncated = read = 0
    for batch in micro_batches:
        for relation, per_rank in _contrasted(batch.relation, gather):
            pairs += count_pairs(relation, *per_rank)
            queries += relation.num_queries
            documents += relation.num_documents
        own = batch.queries.num_tokens + batch.documents.num_tokens
        padded = own if padded_chunk_tokens is None else padded_tokens(batch, padded_chunk_tokens)
        for rank_tokens, rank_read, rank_truncated in distributed.gather_objects((own, padded, batch.num_truncated)):
            tokens += rank_tokens
            read += rank_read
            truncated += rank_truncated
    return BatchFacts(
        queries=queries,
        documents=documents,
        positives=pairs["positives"] / queries,
        hard_negatives=pairs["hard"] / queries,
        in_batch_negatives=in_batch * pairs["in_batch"] / queries,
        cross_device_negatives=in_batch * pairs["cross_device"] / queries,
        ignored=pairs["ignored"] / queries,
        tokens=tokens,
        truncated=truncated,
        padding_share=1 - tokens / read,
        in_batch=in_batch,
    )


def _contrasted(own: Relation, gather: bool) -> list[tuple[Relation, tuple[list[int], list[int]]]]:
    """The relations that losses see, all ranks counted, and how many queries and documents each rank brought into each."""
    if gather:
        relation, queries, documents = distributed.gather_relation(own)
        return [(relation, (queries, documents))]
    return [(one, ([one.num_queries], [one.num_documents])) for one in distributed.gather_objects(own)]


def padded_tokens(batch: TokenBatch, chunk_tokens: int) -> int:
    """Tokens of all chunks when each is filled up to its longest text."""
    lengths = torch.cat([batch.queries.lengths, batch.documents.lengths])
    return sum(int(lengths[index].max()) * index.numel() for index in chunks(lengths, chunk_tokens))


def count_pairs(relation: Relation, queries: Sequence[int], documents: Sequence[int]) -> Counter[str]:
    """The (query, document) pairs of each kind. `queries` and `documents`: how many each rank brought, rank by rank."""
    reader = RelationReader(relation)
    rows = torch.arange(relation.num_queries)
    row, column = reader.exceptions("q2d", rows)  # positives and ignored
    same_rank = _rank_of(queries)[row] == _rank_of(documents)[column]
    near = sum(q * d for q, d in zip(queries, documents, strict=True))
    positives, hard = reader.pair_query.numel(), reader.hard_negatives(rows)[0].numel()
    return Counter(
        positives=positives,
        ignored=row.numel() - positives,
        hard=hard,  # its owner's rank brought it
        in_batch=near - int(same_rank.sum()) - hard,
        cross_device=relation.num_queries * relation.num_documents - near - int((~same_rank).sum()),
    )


def _rank_of(counts: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts)))


class SpeedMeter:
    """Queries and tokens per second, and the share of the time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._started = time.perf_counter()
        self._queries = self._tokens = 0
        self._waited = 0.0

    def add(self, micro_batches: Sequence[TokenBatch], waited: float) -> None:
        for batch in micro_batches:
            self._queries += len(batch.queries)
            self._tokens += batch.queries.num_tokens + batch.documents.num_tokens
        self._waited += waited

    def leave_out(self, seconds: float) -> None:
        """Time in which there was no training, such as that of mining."""
        self._started += seconds

    def read(self) -> dict[str, float]:
        """Of this rank, times the number of ranks: they go in step."""
        seconds = max(1e-9, time.perf_counter() - self._started)
        ranks = distributed.world_size()
        values = {
            "train/queries_per_second": ranks * self._queries / seconds,
            "train/tokens_per_second": ranks * self._tokens / seconds,
            "train/data_wait_share": self._waited / seconds,
            "train/peak_memory_gb": peak_memory_gb(),
        }
        self.reset()
        return values


def peak_memory_gb() -> float:
    """Peak memory of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak / 1e6
