"""Rows into batches so that no text is in a batch twice, where that can be had.

Each row has keys: the ids of the texts it brings. Two rows with a common key should not meet.

1. Deal. Rows with the same first key lie together, in an order that is random otherwise, and are dealt out one batch after
   the other, as cards are. A key held by no more rows than there are batches then meets itself nowhere.
2. Repair. What meets through its other keys is swapped with rows of other batches, drawn at random, where both fit.
   A key held by more rows than there are batches must meet itself somewhere; what remains is counted and left (the
   relation of a batch masks it by id, so it costs a little compute and no correctness).

Everything is sorted arrays: a million rows take about two seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedtrain.data.draws import Ints, expand

_ROUNDS = 40
_PATIENCE = 3  # rounds without progress (1 % fewer meetings) before the rest is left
_TRIES = 400_000  # swaps looked at in a round, over all rows that need one
_MOST_TRIES = 64


@dataclass(frozen=True, slots=True)
class RowKeys:
    """The keys of R rows: row r has `keys[offsets[r]:offsets[r + 1]]`, numbers from 0 to `distinct`, each row at least one."""

    keys: Ints
    offsets: Ints
    distinct: int

    @classmethod
    def of(cls, ids: Ints, counts: Ints) -> RowKeys:
        """From text ids, row by row."""
        distinct, keys = np.unique(ids, return_inverse=True)
        return cls(keys.astype(np.int64), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), distinct.size)

    @property
    def counts(self) -> Ints:
        return np.diff(self.offsets)

    def of_rows(self, rows: Ints) -> tuple[Ints, Ints]:
        """(position in `rows`, key) of every key that these rows have."""
        owner, number = expand(self.counts[rows])
        return owner, self.keys[self.offsets[rows][owner] + number]


def spread(keys: RowKeys, sizes: Ints, generator: np.random.Generator) -> tuple[Ints, int]:
    """Rows in batch order, and how many of them meet a text of their own in their batch.

    `sizes` [B] are the batches' rows. Where they add up to less than all rows, a random rest is left out.
    """
    order = generator.permutation(keys.offsets.size - 1)[: int(sizes.sum())]
    batch_of = _deal(keys, order, sizes, generator)
    meeting = _repair(keys, order, batch_of, generator)
    return order[np.argsort(batch_of, kind="stable")], meeting


def count_meeting(keys: RowKeys, order: Ints, sizes: Ints) -> int:
    """Rows that share a text with an earlier row of their batch; `order` [R] are the rows, batch by batch."""
    owner, key = keys.of_rows(order)
    return _meeting(owner, expand(sizes)[0][owner] * keys.distinct + key)[0].size


def _deal(keys: RowKeys, order: Ints, sizes: Ints, generator: np.random.Generator) -> Ints:
    """The batch of each row of `order`."""
    first = keys.keys[keys.offsets[order]]
    together = np.argsort(generator.permutation(keys.distinct)[first], kind="stable")
    batch, number = expand(sizes)
    turn = np.argsort((number + 0.5) / sizes[batch], kind="stable")  # one row to each batch, then the next one
    batch_of = np.empty_like(order)
    batch_of[together] = batch[turn]
    return batch_of


def _repair(keys: RowKeys, order: Ints, batch_of: Ints, generator: np.random.Generator) -> int:
    """Swaps batches of rows in place until no text is in a batch twice, or nothing gets better."""
    owner, key = keys.of_rows(order)
    best, best_meeting, stuck = batch_of.copy(), order.size + 1, 0
    for _ in range(_ROUNDS):
        codes = batch_of[owner] * keys.distinct + key
        meeting, present = _meeting(owner, codes)
        stuck = 0 if meeting.size < 0.99 * best_meeting else stuck + 1
        if meeting.size < best_meeting:
            best, best_meeting = batch_of.copy(), meeting.size
        if meeting.size == 0 or stuck >= _PATIENCE:
            break
        _swap(keys, order, batch_of, meeting, present, generator)
    batch_of[:] = best
    return best_meeting


def _meeting(owner: Ints, codes: Ints) -> tuple[Ints, Ints]:
    """Rows with a (batch, key) that an earlier row has too, and all codes in order."""
    order = np.argsort(codes)  # how equal ones lie is up to the machine, so they are put in order again below
    present = codes[order]
    equal = present[1:] == present[:-1]
    entries = np.sort(order[np.append(equal, False) | np.append(False, equal)])
    entries = entries[np.argsort(codes[entries], kind="stable")]
    again = (codes[entries][1:] == codes[entries][:-1]) & (owner[entries][1:] != owner[entries][:-1])
    return np.unique(owner[entries][1:][again]), present


def _swap(
    keys: RowKeys, order: Ints, batch_of: Ints, meeting: Ints, present: Ints, generator: np.random.Generator
) -> None:
    """Gives each meeting row the place of a random row such that both come where their keys are not yet."""
    tries = int(np.clip(_TRIES // meeting.size, 1, _MOST_TRIES))
    row = np.repeat(meeting, tries)
    partner = generator.integers(order.size, size=row.size)
    fits = _is_free(keys, order[row], batch_of[partner], present) & _is_free(
        keys, order[partner], batch_of[row], present
    )
    fits &= ~_contains(meeting, partner)
    row, partner = row[fits], partner[fits]
    for pair in (0, 1):  # a row goes to one place, and a place to one row: the first that fits
        _, chosen = np.unique((row, partner)[pair], return_index=True)
        row, partner = row[chosen], partner[chosen]
    batch_of[row], batch_of[partner] = batch_of[partner], batch_of[row]


def _is_free(keys: RowKeys, rows: Ints, batches: Ints, present: Ints) -> NDArray[np.bool_]:
    """Whether no key of the row is in the batch."""
    owner, key = keys.of_rows(rows)
    taken = _contains(present, batches[owner] * keys.distinct + key)
    return np.bincount(owner[taken], minlength=rows.size) == 0


def _contains(ordered: Ints, values: Ints) -> NDArray[np.bool_]:
    """Which of the values are in the sorted array."""
    # Ascending values walk through the array instead of jumping about in it: 10 times faster.
    order = np.argsort(values)
    ascending = values[order]
    place = np.minimum(np.searchsorted(ordered, ascending), ordered.size - 1)
    found = np.empty(values.size, dtype=np.bool_)
    found[order] = ordered[place] == ascending
    return found
