"""What becomes of a row with fewer than K negatives. Never filled in silence.

    keep    it stays as it is
    drop    its query goes, and so do the rows that ask it
    random  it is filled with documents of the corpus drawn uniformly, of reason "random", without a score

A random document is none that is known or suspected to answer: no positive of the query, no copy or near-duplicate of one, not
the query itself, no document of the query's own class, nothing that was a candidate (what is not in the row was
refused by a filter), and no copy of any of these. What a corpus cannot give is missing, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedtrain.errors import ConfigError
from embedtrain.mining.draw import Drawn, query_ids
from embedtrain.mining.near_duplicates import Copies, copy_id
from embedtrain.mining.records import NO_DOCUMENT, REASONS, Candidates
from embedtrain.types import NO_LABEL

Policy = Literal["keep", "drop", "random"]
_RANDOM = REASONS.index("random")


class Settled(NamedTuple):
    """Rows after the policy."""

    drawn: Drawn
    stays: NDArray[np.bool_]  # [Q] False: the query goes, by policy `drop`
    counts: dict[str, int]  # of queries, and of negatives


def settle_short_rows(
    drawn: Drawn,
    candidates: Candidates,
    policy: Policy,
    copies: Copies,
    seed: int = 0,
    wanted: NDArray[np.bool_] | None = None,
) -> Settled:
    """What becomes of the short rows of a block.

    drawn       of all that was left of `candidates`, K wide
    copies      of the documents of the data
    wanted [Q]  False: a query filter dropped the query; its row is neither filled nor counted. None: all are wanted

    Counts: `short rows` (fewer than K), `rows without a negative` (none at all), `negatives missing` of short rows; and what the
    policy did: `rows dropped`, or `filled at random` (negatives) and `rows still short`.

    A random draw is a function of the seed, the query and the corpus.
    """
    if policy not in ("keep", "drop", "random"):
        raise ConfigError(f"miner.short_rows={policy!r}: expected one of keep, drop, random.")
    wanted = np.ones(len(candidates.queries), dtype=np.bool_) if wanted is None else wanted
    width = drawn.documents.shape[1]
    short = wanted & (drawn.taken < width)
    counts = {
        "short rows": int(short.sum()),
        "rows without a negative": int((short & (drawn.taken == 0)).sum()),
        "negatives missing": int((width - drawn.taken[short]).sum()),
    }
    if policy == "drop":
        return Settled(drawn, ~short, counts | {"rows dropped": counts["short rows"]})
    stays = np.ones_like(wanted)
    if policy == "keep":
        return Settled(drawn, stays, counts)
    filled = _filled(drawn, candidates, np.flatnonzero(short), copies, seed)
    done = {
        "filled at random": int((filled.reasons == _RANDOM).sum()),
        "rows still short": int((filled.taken[short] < width).sum()),
    }
    return Settled(filled, stays, counts | done)


def _filled(drawn: Drawn, candidates: Candidates, rows: np.ndarray, copies: Copies, seed: int) -> Drawn:
    documents, reasons = drawn.documents.copy(), drawn.reasons.copy()
    width = documents.shape[1]
    ids = query_ids(candidates.data, candidates.queries[rows])
    for row, identity in zip(rows.tolist(), ids.tolist(), strict=True):
        missing = width - int(drawn.taken[row])
        found = _harmless(candidates, row, missing, copies, np.random.default_rng([seed, identity]))
        place = slice(width - missing, width - missing + len(found))
        documents[row, place] = found
        reasons[row, place] = _RANDOM
    return Drawn(documents, drawn.scores, drawn.ranks, reasons)


def _harmless(
    candidates: Candidates, row: int, count: int, copies: Copies, generator: np.random.Generator
) -> list[int]:
    """At most `count` documents for one query, none of which is known or suspected to answer it."""
    data, query = candidates.data, int(candidates.queries[row])
    positives = data.positives_of(query)
    looked_at = candidates.documents[row].numpy()
    taken = set(copies.ids_of(np.concatenate([positives, looked_at[looked_at != NO_DOCUMENT]])).tolist())
    taken.add(copy_id(data.queries[query]))
    found: list[int] = []
    order = _in_random_order(data.num_searched, generator)
    while drawn := list(islice(order, count - len(found))):
        documents = np.array(drawn, dtype=np.int64)
        each = np.repeat(documents, positives.size)
        wrong = copies.near(each, np.tile(positives, documents.size)).reshape(documents.size, -1).any(axis=1)
        labels = data.document_labels[documents]
        wrong |= (labels != NO_LABEL) & (labels == data.query_labels[query])
        for document, text in zip(documents[~wrong].tolist(), copies.ids_of(documents[~wrong]).tolist(), strict=True):
            if text not in taken:
                taken.add(text)
                found.append(document)
    return found


def _in_random_order(count: int, generator: np.random.Generator) -> Iterator[int]:
    """All numbers below `count`. The first half one by one, since few are ever asked for; then the rest."""
    seen: set[int] = set()
    while 2 * len(seen) < count:
        for number in generator.integers(count, size=32).tolist():
            if number not in seen:
                seen.add(number)
                yield number
    rest = np.setdiff1d(np.arange(count), np.fromiter(seen, dtype=np.int64, count=len(seen)))
    yield from generator.permutation(rest).tolist()
