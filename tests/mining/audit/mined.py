"""Mined negatives with all that can be odd about them, and small ones that a test writes down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from embedtrain.mining.records import NO_DOCUMENT, REASONS, Mined, MiningData
from embedtrain.types import NO_LABEL
from tests.mining.filters.tables import texts_as_data

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
TOP = REASONS.index("top")


def odd(seed: int) -> tuple[MiningData, Mined]:
    """Random: dropped queries, short and empty rows, fillers without a score, positives without one, queries that others
    ask too, in other case or with another instruction, documents that are copies or nearly so, classes, missing positives.
    """
    random = np.random.default_rng(seed)
    num_queries, num_documents, width = (
        int(random.integers(1, 15)),
        int(random.integers(8, 40)),
        int(random.integers(1, 7)),
    )
    queries, instructions = (
        _distinct(random, num_queries, length=2),
        random.choice([None, "find"], num_queries).tolist(),
    )
    documents = _distinct(random, num_documents, length=12)
    searched = int(random.integers(num_documents // 2, num_documents)) + 1
    positives = [random.choice(num_documents, random.integers(1, 4), replace=False).tolist() for _ in queries]
    data = texts_as_data(
        queries,
        documents,
        positives,
        num_searched=searched,
        instructions=instructions,
        query_labels=random.integers(NO_LABEL, 3, num_queries).tolist(),
        document_labels=random.integers(NO_LABEL, 3, num_documents).tolist(),
    )
    rows = np.concatenate([np.arange(num_queries), random.integers(0, num_queries, 3)])
    data = replace(data, query_of_row=rows, documents_read=3 * num_documents)

    negatives = nothing(num_queries, width, positives=data.positives.size)
    for query, own in enumerate(positives):
        others = random.permutation(np.setdiff1d(np.arange(searched), own))[: random.integers(0, width + 1)]
        n = others.size
        by_search = random.random(n) < 0.8
        negatives.documents[query, :n] = others
        negatives.scores[query, :n] = np.where(by_search, random.uniform(-1, 1, n).round(1), np.nan)
        negatives.ranks[query, :n] = np.where(by_search, np.sort(random.integers(1, 300, n)), 0)
        negatives.reasons[query, :n] = np.where(by_search, TOP, REASONS.index("random"))
    negatives.positive_scores[:] = random.uniform(-1, 1, data.positives.size).round(1)
    negatives.positive_scores[random.random(data.positives.size) < 0.2] = np.nan
    negatives.kept_queries[:] = random.random(num_queries) < 0.8
    return data, negatives


def nothing(num_queries: int, width: int, *, positives: int) -> Mined:
    """No negative of any query."""
    return Mined(
        documents=np.full((num_queries, width), NO_DOCUMENT),
        scores=np.full((num_queries, width), np.nan, dtype=np.float32),
        ranks=np.zeros((num_queries, width), dtype=np.int64),
        reasons=np.zeros((num_queries, width), dtype=np.uint8),
        positive_scores=np.full(positives, np.nan, dtype=np.float32),
        kept_queries=np.ones(num_queries, dtype=np.bool_),
    )


def plain(
    negatives: list[list[int]],
    *,
    num_documents: int = 100,
    positive: float = 0.8,
    scores: float | list[list[float]] = 0.2,
    width: int | None = None,
    **texts,
) -> tuple[MiningData, Mined]:
    """Query q is answered by document q alone, with score `positive`; these are its negatives, best first.

    `texts`: as of `texts_as_data`.
    """
    data = texts_as_data(
        texts.pop("queries", [f"question {q}" for q in range(len(negatives))]),
        texts.pop("documents", [f"text {d}" for d in range(num_documents)]),
        texts.pop("positives", [[q] for q in range(len(negatives))]),
        **texts,
    )
    mined = nothing(len(negatives), width or max(map(len, negatives)), positives=data.positives.size)
    mined.positive_scores[:] = positive
    for query, own in enumerate(negatives):
        n = len(own)
        mined.documents[query, :n] = own
        mined.scores[query, :n] = scores if isinstance(scores, float) else scores[query]
        mined.ranks[query, :n] = np.arange(1, n + 1)
        mined.reasons[query, :n] = TOP
    return data, mined


def _distinct(random: np.random.Generator, count: int, length: int) -> list[str]:
    """Different texts, many of which have nearly the same words, or the same in other case and punctuation."""
    texts: dict[str, None] = {}
    while len(texts) < count:
        words = WORDS[:length]
        for _ in range(random.integers(0, 4)):
            words[random.integers(length)] = str(random.choice(WORDS))
        text = " ".join(words)
        texts[str(random.choice([text, text.title(), f"{text}!", f"- {text}"]))] = None
    return list(texts)
