"""Candidates with all that can be odd about them: missing documents, several positives, classes, equal and negative scores."""

from __future__ import annotations

import numpy as np
import torch

from embedtrain.mining.records import NO_DOCUMENT, Candidates, MiningData
from embedtrain.types import NO_LABEL


def texts_as_data(
    queries: list[str],
    documents: list[str],
    positives: list[list[int]],
    *,
    num_searched: int | None = None,
    instructions: list[str | None] | None = None,
    query_labels: list[int] | None = None,
    document_labels: list[int] | None = None,
) -> MiningData:
    """`positives`: documents of each query."""
    return MiningData(
        source="things",
        queries=queries,
        instructions=instructions or [None] * len(queries),
        documents=documents,
        num_searched=len(documents) if num_searched is None else num_searched,
        positives=np.array([d for own in positives for d in own], dtype=np.int64),
        positive_offsets=np.cumsum([0, *map(len, positives)]).astype(np.int64),
        query_of_row=np.arange(len(queries), dtype=np.int64),
        query_labels=np.array(query_labels or [NO_LABEL] * len(queries), dtype=np.int64),
        document_labels=np.array(document_labels or [NO_LABEL] * len(documents), dtype=np.int64),
        documents_read=len(documents),
    )


def table(seed: int, *, num_queries: int = 12, width: int = 9, low: float = -1.0, high: float = 1.0) -> Candidates:
    """Random candidates: rows end early (one is empty), scores are rounded so that some are equal, some are out already."""
    random = np.random.default_rng(seed)
    num_documents = 3 * width
    positives = [random.choice(num_documents, size=random.integers(1, 4), replace=False) for _ in range(num_queries)]
    data = texts_as_data(
        [f"query {q}" for q in range(num_queries)],
        [f"document {d}" for d in range(num_documents)],
        [own.tolist() for own in positives],
        query_labels=random.integers(NO_LABEL, 3, num_queries).tolist(),
        document_labels=random.integers(NO_LABEL, 3, num_documents).tolist(),
    )
    documents = np.full((num_queries, width), NO_DOCUMENT)
    scores = np.full((num_queries, width), np.nan, dtype=np.float32)
    for q, own in enumerate(positives):
        others = random.permutation(np.setdiff1d(np.arange(num_documents), own))
        there = 0 if q == 1 else min(width, int(random.integers(1, 2 * width)))
        documents[q, :there] = others[:there]
        scores[q, :there] = np.sort(random.uniform(low, high, there).round(1))[::-1]
    there = torch.from_numpy(documents != NO_DOCUMENT)
    return Candidates(
        data=data,
        queries=np.arange(num_queries, dtype=np.int64),
        documents=torch.from_numpy(documents),
        scores=torch.from_numpy(scores),
        ranks=torch.arange(1, width + 1).expand(num_queries, width) * there,
        positive_scores=torch.from_numpy(random.uniform(low, high, data.positives.size).round(1).astype(np.float32)),
        positive_offsets=torch.from_numpy(data.positive_offsets),
        kept=there & torch.from_numpy(random.random(there.shape) < 0.8),
    )


def part_of(candidates: Candidates, rows: list[int]) -> Candidates:
    """Some of the rows, in this order, as a block of its own."""
    index = torch.tensor(rows, dtype=torch.int64)
    offsets = candidates.positive_offsets
    scores = [candidates.positive_scores[offsets[row] : offsets[row + 1]] for row in rows]
    return Candidates(
        data=candidates.data,
        queries=candidates.queries[index.numpy()],
        documents=candidates.documents[index],
        scores=candidates.scores[index],
        ranks=candidates.ranks[index],
        positive_scores=torch.cat([torch.zeros(0), *scores]),
        positive_offsets=torch.cat([torch.zeros(1, dtype=torch.int64), offsets.diff()[index].cumsum(0)]),
        kept=candidates.kept[index],
    )


def positives_in(candidates: Candidates, row: int) -> list[float]:
    """Scores of the positives of a row."""
    first, last = candidates.positive_offsets[row : row + 2].tolist()
    return candidates.positive_scores[first:last].tolist()
