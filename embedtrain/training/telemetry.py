"""What a run says about itself: what a query is contrasted with, how fast it goes, how it is doing."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from embedtrain import distributed
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

    @property
    def truncated_share(self) -> float:
        return self.truncated / (self.queries + self.documents)

    @property
    def negatives(self) -> float:
        """All negatives of a query: the width of its softmax without the positive."""
        return self.hard_negatives + self.in_batch_negatives + self.cross_device_negatives

    def line(self, *, in_batch: bool, padding_share: float) -> str:
        negatives = (
            f"{self.in_batch_negatives:,.1f} in-batch + {self.cross_device_negatives:,.1f} cross-device negatives"
            if in_batch
            else "no in-batch negatives (the loss leaves them out)"
        )
        return (
            f"first step: {self.queries:,} queries, each with {self.positives:,.1f} positives, {self.hard_negatives:,.1f} hard "
            f"negatives, {negatives} ({self.ignored:,.1f} duplicates left out); {self.documents:,} documents, "
            f"{self.tokens:,} tokens, {self.truncated_share:.1%} of texts truncated, {padding_share:.1%} padding"
        )


def batch_facts(micro_batches: Sequence[TokenBatch]) -> BatchFacts:
    """Count what the queries of one step are contrasted with. Every rank calls it; every rank gets the same answer."""
    sums = [0.0] * 5
    queries = documents = tokens = truncated = 0
    for batch in micro_batches:
        relation, _, per_rank = distributed.gather_relation(batch.relation)
        for i, value in enumerate(_count_pairs(relation, per_rank)):
            sums[i] += value
        queries += relation.num_queries
        documents += relation.num_documents
        own = (batch.queries.num_tokens + batch.documents.num_tokens, batch.num_truncated)
        for rank_tokens, rank_truncated in distributed.gather_objects(own):
            tokens += rank_tokens
            truncated += rank_truncated
    positives, hard, in_batch, cross, ignored = (value / queries for value in sums)
    return BatchFacts(queries, documents, positives, hard, in_batch, cross, ignored, tokens, truncated)


def _count_pairs(relation: Relation, documents_per_rank: Sequence[int]) -> tuple[int, int, int, int, int]:
    """Positives, hard, in-batch and cross-device negatives, ignored pairs: summed over queries. Plain and obvious."""
    positives = hard = in_batch = cross = ignored = 0
    ids = relation.document_ids.tolist()
    owner = relation.owner.tolist()
    is_positive = relation.is_positive.tolist()
    query_ids = relation.query_ids.tolist()
    columns_of_id: dict[int, list[int]] = {}
    brought_by: dict[int, list[int]] = {}  # text of a query -> columns brought as its positives
    rank_of_column = [r for r, n in enumerate(documents_per_rank) for _ in range(n)]
    own_columns: list[list[int]] = [[] for _ in query_ids]
    for column, document in enumerate(ids):
        columns_of_id.setdefault(document, []).append(column)
        own_columns[owner[column]].append(column)
        if is_positive[column]:
            brought_by.setdefault(query_ids[owner[column]], []).append(column)
    known_offsets = relation.known_offsets.tolist()
    known = relation.known_ids.tolist()
    for query, columns in enumerate(own_columns):
        answers = {c for k in known[known_offsets[query] : known_offsets[query + 1]] for c in columns_of_id.get(k, ())}
        answers |= set(brought_by.get(query_ids[query], ()))
        own_positives = {c for c in columns if is_positive[c]}
        own_hard = {c for c in columns if not is_positive[c]} - answers
        same_rank = range_of(rank_of_column, columns[0], documents_per_rank)
        left_out = answers - own_positives
        near = len(same_rank) - len(columns) - sum(c in same_rank for c in left_out if owner[c] != query)
        positives += len(own_positives)
        hard += len(own_hard)
        ignored += len(left_out)
        in_batch += near
        cross += len(ids) - len(own_positives) - len(own_hard) - len(left_out) - near
    return positives, hard, in_batch, cross, ignored


def range_of(rank_of_column: Sequence[int], column: int, documents_per_rank: Sequence[int]) -> range:
    """The columns that the rank of `column` brought."""
    rank = rank_of_column[column]
    first = sum(documents_per_rank[:rank])
    return range(first, first + documents_per_rank[rank])


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
