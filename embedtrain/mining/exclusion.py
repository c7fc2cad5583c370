"""From what a search found to candidates: out goes what is known to answer the query.

A document is taken out for the first of these that is true of it:

    positive                      it is a positive of the query: of any row that asks it
    the query itself              it is a copy of the query
    copy of a positive            it is a copy of a positive of the query
    near-duplicate of a positive  its word triples are nearly those of one (near_duplicates.py)

Copies and near-duplicates are found by text and never by similarity: what a model finds alike is for filters to judge.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedtrain.data.draws import Ints, expand
from embedtrain.mining.near_duplicates import Copies, copy_id
from embedtrain.mining.pairs import positives_of
from embedtrain.mining.records import NO_DOCUMENT, Candidates, Found, MiningData

WHY = ("positive", "the query itself", "copy of a positive", "near-duplicate of a positive")
_LEFT = len(WHY)
_PAIRS_AT_ONCE = 2**21


def candidates_of(
    data: MiningData,
    queries: Ints,
    found: Found,
    positive_scores: Tensor,
    positive_offsets: Tensor,
    depth: int,
    copies: Copies,
) -> tuple[Candidates, dict[str, int]]:
    """The `depth` best found documents of each query that are not known to answer it, and how many went for each reason.

    queries           [Q] numbers in `data`
    found             of these queries, [Q, k]; no document twice in a row
    positive_scores   as in `Candidates`, and positive_offsets
    copies            of `data.documents`

    Candidates are [Q, min(depth, k)]. Counts are of all that was found, below `depth` as well.
    Cost: some 100 bytes of memory per found document; time as near_duplicates.py says.
    """
    documents = found.documents.numpy()
    why = _reasons(data, queries, documents, copies)
    counts = {name: int((why == number).sum()) for number, name in enumerate(WHY)}

    # What is left moves to the front of its row, in its order.
    left = torch.from_numpy(why == _LEFT)
    order = torch.argsort((~left).to(torch.uint8), dim=1, stable=True)[:, :depth]
    there = left.gather(1, order)
    ranks = torch.arange(1, order.shape[1] + 1).expand_as(order)
    candidates = Candidates(
        data=data,
        queries=queries,
        documents=found.documents.gather(1, order).masked_fill_(~there, NO_DOCUMENT),
        scores=found.scores.gather(1, order).masked_fill_(~there, torch.nan),
        ranks=ranks.masked_fill(~there, 0),
        positive_scores=positive_scores,
        positive_offsets=positive_offsets,
        kept=there,
    )
    return candidates, counts


def _reasons(data: MiningData, queries: Ints, documents: Ints, copies: Copies) -> NDArray[np.int8]:
    """[Q, k] number in `WHY`, `_LEFT` for what stays, -1 where there is no document."""
    in_order = np.sort(documents, axis=1)
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != NO_DOCUMENT)
    assert not twice.any(), "a search returned a document twice for one query"
    row, column = np.nonzero(documents != NO_DOCUMENT)
    document = documents[row, column]
    owner, positives = positives_of(data, queries)

    # Texts and rows as small numbers, so that (row, text) is one number without any collision.
    distinct, place = np.unique(np.concatenate([document, positives]), return_inverse=True)
    asked = np.array([copy_id(data.queries[query]) for query in queries.tolist()], dtype=np.int64)
    _, text = np.unique(np.concatenate([copies.ids_of(distinct), asked]), return_inverse=True)
    found_text, positive_text = text[place[: row.size]], text[place[row.size :]]
    asked_text = text[distinct.size :]

    conditions = (
        np.isin(row * np.int64(len(data.documents)) + document, owner * np.int64(len(data.documents)) + positives),
        found_text == asked_text[row],
        np.isin(row * np.int64(text.size) + found_text, owner * np.int64(text.size) + positive_text),
    )
    why = np.select(conditions, range(len(conditions)), default=_LEFT)

    if copies.threshold is not None:
        undecided = np.flatnonzero(why == _LEFT)
        count = np.bincount(owner, minlength=queries.size)
        first = np.cumsum(count) - count
        # Each that is left with each positive of its query, some millions of pairs at a time.
        turn = np.cumsum(count[row[undecided]]) // _PAIRS_AT_ONCE
        for slots in np.split(undecided, np.flatnonzero(np.diff(turn)) + 1):
            pair, number = expand(count[row[slots]])
            near = copies.near(document[slots][pair], positives[first[row[slots]][pair] + number])
            why[slots[pair[near]]] = _LEFT - 1

    reasons = np.full(documents.shape, -1, dtype=np.int8)
    reasons[row, column] = why
    return reasons
