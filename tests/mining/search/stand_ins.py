"""Small corpora, and the slow loop that says what a search must find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from embedtrain.mining.records import NO_DOCUMENT, Found, MiningData, SearchRequest
from embedtrain.mining.vectors import ArrayVectors


def texts_only(queries: Sequence[str], documents: Sequence[str], num_searched: int | None = None) -> MiningData:
    """Nobody's positives, no classes."""
    num, size = len(queries), len(documents)
    none = np.zeros(0, dtype=np.int64)
    return MiningData(
        source="toy",
        queries=queries,
        instructions=[None] * num,
        documents=documents,
        num_searched=size if num_searched is None else num_searched,
        positives=none,
        positive_offsets=np.zeros(num + 1, dtype=np.int64),
        query_of_row=np.arange(num),
        query_labels=np.full(num, -1),
        document_labels=np.full(size, -1),
        documents_read=size,
    )


def request(
    queries: np.ndarray, documents: np.ndarray, folder: Path, *, num_searched: int | None = None, cap: int = 2**28
) -> SearchRequest:
    data = texts_only(
        [f"query {i}" for i in range(len(queries))], [f"document {i}" for i in range(len(documents))], num_searched
    )
    return SearchRequest(data, ArrayVectors(queries), ArrayVectors(documents), torch.device("cpu"), cap, folder)


def lexical_request(
    queries: Sequence[str], documents: Sequence[str], folder: Path, *, num_searched: int | None = None
) -> SearchRequest:
    return SearchRequest(texts_only(queries, documents, num_searched), None, None, torch.device("cpu"), 2**28, folder)


def unit(*shape: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def score(query: np.ndarray, document: np.ndarray) -> np.float32:
    """The inner product, exact and then rounded."""
    return np.float32(math.fsum(float(a) * float(b) for a, b in zip(query, document, strict=True)))


def slow_top(queries: np.ndarray, documents: np.ndarray, k: int) -> Found:
    """By score from the top, equal scores by number from the bottom, one pair at a time."""
    rows, scores = [], []
    for query in queries:
        all_scores = [score(query, document) for document in documents]
        order = sorted(range(len(documents)), key=lambda i: (-all_scores[i], i))[:k]
        rows.append(order + [NO_DOCUMENT] * (k - len(order)))
        scores.append([all_scores[i] for i in order] + [math.nan] * (k - len(order)))
    return Found(
        torch.tensor(rows, dtype=torch.int64).reshape(len(queries), k),
        torch.tensor(np.array(scores, dtype=np.float32)).reshape(len(queries), k),
    )


def assert_same(found: Found, expected: Found) -> None:
    assert found.documents.dtype == torch.int64
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.documents, expected.documents)
    assert torch.equal(found.scores.nan_to_num(nan=-9), expected.scores.nan_to_num(nan=-9))


def joined(parts: Sequence[Found]) -> Found:
    """What all ranks found."""
    return Found(torch.cat([p.documents for p in parts]), torch.cat([p.scores for p in parts]))
