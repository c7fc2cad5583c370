"""Which of a row's positives and hard negatives are used at a visit: a pure function of (seed, row, visit).

A row with n candidates of which k are wanted has them shuffled once, by (seed, row). Visit v takes the window of k that
begins at v * k, around the end where needed: so all candidates are seen in turn, in an order that no file decides.
Planner and workers compute the same draw from the same numbers; nothing is stored and nothing sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def draw(counts: Ints, wanted: int | None, *, rows: Ints, visits: Ints, seed: int) -> tuple[Ints, Ints]:
    """Candidates drawn for each of R rows.

    counts [R]   candidates that a row has          wanted   how many to take; None is all
    rows [R]     number of the row in its source    visits [R]   how often the source was gone through before

    Returns (taken [R], which [sum(taken)]): how many are taken for each row (`wanted`, or all where there are fewer), and
    their numbers, row by row, in ascending order.
    """
    taken = counts if wanted is None else np.minimum(counts, wanted)
    owner, number = expand(counts)
    if wanted is None or not (counts > wanted).any():
        return taken, number
    rank = _shuffled_rank(owner, number, counts, rows[owner], seed)
    start = (visits * taken) % np.maximum(counts, 1)
    inside = (rank - start[owner]) % counts[owner] < taken[owner]
    return taken, number[inside]


def expand(counts: Ints) -> tuple[Ints, Ints]:
    """For R groups of these sizes: the group of each member and its number in it, both [sum(counts)].

    >>> [a.tolist() for a in expand(np.array([2, 0, 3]))]
    [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]
    """
    owner = np.repeat(np.arange(counts.size, dtype=np.int64), counts)
    starts = np.cumsum(counts) - counts
    return owner, np.arange(owner.size, dtype=np.int64) - starts[owner]


def _shuffled_rank(owner: Ints, number: Ints, counts: Ints, rows: Ints, seed: int) -> Ints:
    """The place of each candidate in its row's shuffled order."""
    key = _mix(
        rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _mix(number.astype(np.uint64) + np.uint64(seed))
    )
    order = np.lexsort((key, owner))  # stable, by row, then by key
    rank = np.empty_like(number)
    rank[order] = expand(counts)[1]
    return rank


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): neighbours in, unrelated numbers out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
