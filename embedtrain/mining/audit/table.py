"""The negatives of the kept queries as flat columns, and what the positives of each query score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedtrain.data.draws import Ints
from embedtrain.mining.records import NO_DOCUMENT, Mined, MiningData

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """N negatives, query by query, and P positives, query by query. Only those of kept queries."""

    kept: NDArray[np.bool_]  # [Q]
    query: Ints  # [N]
    document: Ints  # [N]
    score: Floats  # [N] NaN: none
    rank: Ints  # [N] 0: no search found it
    reason: Ints  # [N] into REASONS
    positive_query: Ints  # [P]
    positive_document: Ints  # [P]
    positive_score: Floats  # [P] NaN: none
    # Of all queries [Q], NaN where no positive, or no negative, has a score.
    lowest_positive: Floats
    mean_positive: Floats
    highest_positive: Floats
    highest_negative: Floats

    @classmethod
    def of(cls, data: MiningData, mined: Mined) -> Table:
        queries = len(data.queries)
        there = (mined.documents != NO_DOCUMENT) & mined.kept_queries[:, None]
        query, column = np.nonzero(there)
        owner = np.repeat(np.arange(queries, dtype=np.int64), np.diff(data.positive_offsets))
        of_kept = mined.kept_queries[owner]
        owner, positive_score = owner[of_kept], _finite(mined.positive_scores[of_kept])
        score = _finite(mined.scores[query, column])
        known = ~np.isnan(positive_score)
        total = np.bincount(owner[known], positive_score[known], minlength=queries)
        count = np.bincount(owner[known], minlength=queries)
        return cls(
            kept=mined.kept_queries,
            query=query.astype(np.int64),
            document=mined.documents[query, column],
            score=score,
            rank=mined.ranks[query, column],
            reason=mined.reasons[query, column].astype(np.int64),
            positive_query=owner,
            positive_document=data.positives[of_kept],
            positive_score=positive_score,
            lowest_positive=-_highest(owner, -positive_score, queries),
            mean_positive=np.divide(total, count, out=np.full(queries, np.nan), where=count > 0),
            highest_positive=_highest(owner, positive_score, queries),
            highest_negative=_highest(query, score, queries),
        )


def _finite(values: np.ndarray) -> Floats:
    return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


def _highest(owner: Ints, values: Floats, count: int) -> Floats:
    """[count] the highest value of each owner, NaN where it has none."""
    highest = np.full(count, -np.inf)
    known = ~np.isnan(values)
    np.maximum.at(highest, owner[known], values[known])
    return np.where(np.isneginf(highest), np.nan, highest)
