"""Rows into batches of P classes with K rows each, for losses that find their pairs in the batch (FaceNet, arXiv:1503.03832).

1. The rows of each class are shuffled and cut into groups of K; fewer than K of each class are left over.
2. Groups are spread over batches of P groups (`spread.py`) with their class as the first key: a class is in a batch once, and
   no text twice, where that can be had.
3. What is left (a random few of the groups, then what the classes left over, class by class) makes the last batches of the
   pass. So every row comes once in a pass and batches are as large as without groups; only the last ones hold classes with
   fewer than K rows.
"""

from __future__ import annotations

import numpy as np

from embedtrain.data.draws import Ints, expand
from embedtrain.data.spread import RowKeys, spread


def grouped(labels: Ints, keys: RowKeys, sizes: Ints, shape: tuple[int, int], generator: np.random.Generator) -> Ints:
    """Rows in batch order.

    labels [R]   class of each row               keys   the texts that each row brings, for R rows
    sizes [B]    rows of each batch, all but the last few P * K; where they add up to less than R, a rest is left out
    shape        (P, K)
    """
    classes_per_batch, per_class = shape
    groups, rest = _groups(labels, per_class, generator)
    whole = np.full(len(groups) // classes_per_batch, classes_per_batch)
    placed = np.empty(0, dtype=np.int64)
    if whole.size:
        placed, _ = spread(_group_keys(groups, labels, keys), whole, generator)
    left = generator.permutation(np.setdiff1d(np.arange(len(groups)), placed))
    order = np.concatenate([groups[placed].ravel(), groups[left].ravel(), rest])
    return order[: int(sizes.sum())]


def _groups(labels: Ints, size: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """Groups of one class [G, size], and the rows left over, class by class in random order."""
    _, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    place = generator.permutation(counts.size)  # of each class
    order = generator.permutation(labels.size)
    order = order[np.argsort(place[number[order]], kind="stable")]
    ordered = counts[np.argsort(place)]
    owner, position = expand(ordered)
    full = position < (ordered // size * size)[owner]
    return order[full].reshape(-1, size), order[~full]


def _group_keys(groups: Ints, labels: Ints, keys: RowKeys) -> RowKeys:
    """Of each group: its class, then all texts of its rows."""
    _, number = np.unique(labels, return_inverse=True)
    place, key = keys.of_rows(groups.ravel())
    owner = np.concatenate([np.arange(len(groups)), place // groups.shape[1]])
    ids = np.concatenate([keys.distinct + number[groups[:, 0]], key])
    return RowKeys.of(ids[np.argsort(owner, kind="stable")], np.bincount(owner, minlength=len(groups)))
