"""Rows to read: half of them the most suspicious, half drawn at random. No figure replaces reading."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from embedtrain.mining.audit.records import Example, ShownNegative, ShownText
from embedtrain.mining.audit.table import Table
from embedtrain.mining.records import NO_DOCUMENT, REASONS, Mined, MiningData

CHARACTERS = 1000  # of a text
POSITIVES, NEGATIVES = 3, 5  # of a query, best first


def examples_of(data: MiningData, mined: Mined, table: Table, count: int, seed: int) -> list[Example]:
    """`count` kept queries that have a negative, or as many as there are; the suspicious ones first.

    Suspicious is a query whose highest negative scores most above its highest positive.
    """
    has_negative = np.unique(table.query)
    above = (table.highest_negative - table.highest_positive)[has_negative]
    known = ~np.isnan(above)
    order = has_negative[known][np.argsort(-above[known], kind="stable")]
    suspicious = order[: count // 2]
    rest = np.setdiff1d(has_negative, suspicious, assume_unique=True)
    drawn = np.random.default_rng(seed).choice(rest, size=min(rest.size, count - suspicious.size), replace=False)
    return [_example(data, mined, table, query, "suspicious") for query in suspicious.tolist()] + [
        _example(data, mined, table, query, "random") for query in drawn.tolist()
    ]


def _example(data: MiningData, mined: Mined, table: Table, query: int, drawn: str) -> Example:
    first = int(data.positive_offsets[query])
    positives = [
        _shown(data.documents[document], float(mined.positive_scores[first + number]))
        for number, document in enumerate(data.positives_of(query).tolist())
    ]
    negatives = [
        ShownNegative(
            **asdict(_shown(data.documents[document], float(mined.scores[query, k]))),
            rank=int(mined.ranks[query, k]),
            reason=REASONS[int(mined.reasons[query, k])],
        )
        for k, document in enumerate(mined.documents[query].tolist())
        if document != NO_DOCUMENT
    ]
    above = float(table.highest_negative[query] - table.highest_positive[query])
    return Example(
        drawn=drawn,
        query=_shown(data.queries[query], None),
        instruction=data.instructions[query],
        above=above if np.isfinite(above) else None,
        positives=sorted(positives, key=_best_first)[:POSITIVES],
        num_positives=len(positives),
        negatives=sorted(negatives, key=_best_first)[:NEGATIVES],
        num_negatives=len(negatives),
    )


def _shown(text: str, score: float | None) -> ShownText:
    known = score is not None and np.isfinite(score)
    return ShownText(text=text[:CHARACTERS], characters=len(text), score=score if known else None)


def _best_first(shown: ShownText) -> float:
    """What has no score comes last."""
    return np.inf if shown.score is None else -shown.score
