"""How many negatives may be answers. Several bases, none of which is the truth; each stands alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedtrain.data.draws import Ints, expand
from embedtrain.mining.audit.records import Estimate
from embedtrain.mining.audit.table import Table
from embedtrain.mining.near_duplicates import Copies, copy_id
from embedtrain.mining.records import MiningData
from embedtrain.types import NO_LABEL

NEAR = 0.5  # Jaccard similarity of word triples
_PAIRS_AT_ONCE = 2**21


def estimates_of(data: MiningData, table: Table, scored_by: str, rescored: bool) -> list[Estimate]:
    """By scores where there are any, by words, and by class where there are classes."""
    return [*_by_score(table, scored_by, rescored), *_by_words(data, table), *_by_class(data, table)]


def _by_score(table: Table, scored_by: str, rescored: bool) -> list[Estimate]:
    judged = ~np.isnan(table.score) & ~np.isnan(table.lowest_positive[table.query])
    if not judged.any():
        return []
    basis = (
        f"by {scored_by}, a stronger model than the one that searched"
        if rescored
        else f"by {scored_by}, which found them: where it errs, so does the estimate"
    )
    limits = [
        ("above_lowest", "the lowest positive", table.lowest_positive),
        ("above_mean", "the mean positive", table.mean_positive),
    ]
    if np.array_equal(table.lowest_positive, table.mean_positive, equal_nan=True):  # each query has one positive
        limits = [("above_mean", "the positive", table.mean_positive)]
    return [
        _estimate(name, f"scores above {which} of its query", basis, table, judged, table.score > limit[table.query])
        for name, which, limit in limits
    ]


def _by_words(data: MiningData, table: Table) -> list[Estimate]:
    """What mining left: it takes out positives of the query, copies of them, and near-duplicates from its own limit on."""
    every = np.ones(table.query.size, dtype=np.bool_)
    return [
        _estimate(
            "same_words",
            "answers a query with the same words",
            "words of query and document, without case, punctuation and instruction: a lower bound",
            table,
            every,
            _answers_same_words(data, table),
        ),
        _estimate(
            "near_duplicates",
            "says much of what a positive of its query says",
            f"word triples with a Jaccard similarity of {NEAR} and more",
            table,
            every,
            _near_positive(data, table),
        ),
    ]


def _answers_same_words(data: MiningData, table: Table) -> NDArray[np.bool_]:
    """[N] has the words of a positive of a query with the same words."""
    queries = _numbered([copy_id(text) for text in data.queries])
    used, place = np.unique(np.concatenate([table.document, table.positive_document]), return_inverse=True)
    text = _numbered([copy_id(data.documents[document]) for document in used.tolist()])[place]
    width = np.int64(used.size + 1)
    asked = queries[table.query] * width + text[: table.document.size]
    answered = queries[table.positive_query] * width + text[table.document.size :]
    return np.isin(asked, answered)


def _near_positive(data: MiningData, table: Table) -> NDArray[np.bool_]:
    """[N] is a near-duplicate of a positive of its query."""
    found = np.zeros(table.query.size, dtype=np.bool_)
    copies = Copies(data.documents, NEAR)
    first, count = data.positive_offsets[table.query], np.diff(data.positive_offsets)[table.query]
    turn = np.cumsum(count) // _PAIRS_AT_ONCE
    for some in np.split(np.arange(found.size), np.flatnonzero(np.diff(turn)) + 1):
        negative, number = expand(count[some])
        near = copies.near(table.document[some][negative], data.positives[first[some][negative] + number])
        found[some[negative[near]]] = True
    return found


def _by_class(data: MiningData, table: Table) -> list[Estimate]:
    query, document = data.query_labels[table.query], data.document_labels[table.document]
    judged = (query != NO_LABEL) & (document != NO_LABEL)
    if not judged.any():
        return []
    what = "is of the query's own class"
    return [_estimate("own_class", what, "where query and document have a label", table, judged, query == document)]


def _estimate(
    name: str, what: str, basis: str, table: Table, judged: NDArray[np.bool_], suspected: NDArray[np.bool_]
) -> Estimate:
    suspected = suspected & judged
    return Estimate(
        name=name,
        what=what,
        basis=basis,
        negatives=int(suspected.sum()),
        of=int(judged.sum()),
        queries=np.unique(table.query[suspected]).size,
    )


def _numbered(ids: list[int]) -> Ints:
    """Equal ids as equal small numbers."""
    return np.unique(np.array(ids, dtype=np.int64), return_inverse=True)[1].astype(np.int64)
