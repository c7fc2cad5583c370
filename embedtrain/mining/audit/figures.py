"""Rows and their siblings, scores, positives below negatives, short rows, ranks."""

from __future__ import annotations

import math

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.mining.audit.records import Counts, Order, Ranks, Scores
from embedtrain.mining.audit.table import Floats, Table
from embedtrain.mining.records import Mined, MiningData

SCORE_BINS, MARGIN_BINS = 40, 20  # of a histogram, about
QUANTILES = (0.05, 0.5, 0.95)
RANK_BINS = (1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1001)  # the first rank of each


def counts_of(data: MiningData, mined: Mined, table: Table) -> Counts:
    rows = np.bincount(data.query_of_row, minlength=len(data.queries))[table.kept]
    positives = np.diff(data.positive_offsets)[table.kept]
    return Counts(
        rows=data.query_of_row.size,
        rows_kept=int(rows.sum()),
        queries=len(data.queries),
        queries_kept=int(table.kept.sum()),
        documents=data.num_searched,
        documents_read=data.documents_read,
        positives=table.positive_query.size,
        documents_that_answer=np.unique(data.positives).size,
        positives_missing=data.num_missing,
        negatives=table.query.size,
        num_negatives=mined.documents.shape[1],
        queries_of_several_rows=int((rows > 1).sum()),
        most_rows_of_a_query=int(rows.max(initial=0)),
        queries_of_several_positives=int((positives > 1).sum()),
        most_positives_of_a_query=int(positives.max(initial=0)),
    )


def scores_of(table: Table) -> Scores | None:
    """Histograms of what has a score; None where nothing has one."""
    positives = table.positive_score[~np.isnan(table.positive_score)]
    negatives = table.score[~np.isnan(table.score)]
    if not positives.size + negatives.size:
        return None
    edges = _edges(np.concatenate([positives, negatives]), SCORE_BINS)
    return Scores(
        edges=edges,
        positives=np.histogram(positives, edges)[0].tolist(),
        negatives=np.histogram(negatives, edges)[0].tolist(),
        positive_quantiles=_quantiles(positives),
        negative_quantiles=_quantiles(negatives),
        positives_without=table.positive_score.size - positives.size,
        negatives_without=table.score.size - negatives.size,
    )


def order_of(table: Table) -> Order:
    margins = table.highest_positive - table.highest_negative
    margins = margins[~np.isnan(margins)]
    edges = _edges(margins, MARGIN_BINS) if margins.size else []
    return Order(
        queries=margins.size,
        some_positive_below=int((table.highest_negative > table.lowest_positive).sum()),
        every_positive_below=int((margins < 0).sum()),
        edges=edges,
        margins=np.histogram(margins, edges)[0].tolist() if edges else [],
        margin_quantiles=_quantiles(margins),
    )


def lengths_of(mined: Mined, table: Table) -> list[int]:
    """[K + 1] kept queries by how many negatives they have."""
    each = np.bincount(table.query, minlength=table.kept.size)[table.kept]
    return np.bincount(each, minlength=mined.documents.shape[1] + 1).tolist()


def ranks_of(table: Table) -> Ranks:
    ranks: Ints = table.rank[table.rank > 0]
    deepest = int(ranks.max(initial=0))
    first = [start for start in RANK_BINS if start <= deepest]
    return Ranks(
        first=first,
        last=[*(start - 1 for start in first[1:]), deepest] if first else [],
        negatives=np.histogram(ranks, [*first, np.inf])[0].tolist() if first else [],
        median=int(np.quantile(ranks, 0.5, method="inverted_cdf")) if ranks.size else None,
        without=table.rank.size - ranks.size,
    )


def _edges(values: Floats, bins: int) -> list[float]:
    """Round numbers around all values, at most `bins` + 2 of one width; one bin where all values are nearly one.

    Every edge is a multiple of the width; the last is above all values, so that 0 counts with what is above it.
    """
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.1 * max(abs(low), abs(high)) or 1.0
        return [low - margin, high + margin]
    rough = (high - low) / bins
    power = math.floor(math.log10(rough))
    step = next(factor * 10.0**power for factor in (1, 2, 2.5, 5, 10) if factor * 10.0**power >= rough * (1 - 1e-9))
    # A step below 1 is one over a whole number: to divide by that gives 0.3 and not 0.30000000000000004.
    parts = round(1 / step) if step < 1 else None
    numbers = np.arange(math.floor(low / step) - 1, math.ceil(high / step) + 2)
    edges = numbers * step if parts is None else numbers / parts
    first = int(np.searchsorted(edges, low, side="right")) - 1
    last = int(np.searchsorted(edges, high, side="right"))
    return edges[first : last + 1].tolist()


def _quantiles(values: Floats) -> list[float] | None:
    return np.quantile(values, QUANTILES).tolist() if values.size else None
