"""Which rows of one file are held out, so that training and evaluation agree without talking to each other.

Both sides read the same rows and ask the same pure function. A row is never split from another with which it shares a
text: rows are the edges of a graph whose nodes are texts (queries and positives alike, so that a question that is also
an answer counts as one), and whole connected components go to one side. Hard negatives make no edge, since mined ones
would connect everything: a held-out document may have been a negative in training, never a positive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import xxhash

from embedtrain.errors import ConfigError, DataError
from embedtrain.types import text_id


def held_out(rows: Iterable[tuple[str, Sequence[str]]], *, share: float, seed: int = 0) -> list[bool]:
    """For each row (query, positives): is it held out?

    Components are put in an order drawn from their texts and `seed` alone, and taken from the front while they fit into
    `share` of the rows. So the answer does not depend on the order of the rows, a larger share contains nearly all of a smaller
    one, and a component too large to fit stays in training.

    Raises ConfigError for a share outside (0, 1), DataError when nothing can be held out or nothing is left to train on.
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"held_out.share must lie between 0 and 1, got {share}.")
    component = _components(rows)
    sizes = Counter(component)
    room = max(1, round(share * len(component)))
    taken: set[int] = set()
    for root in sorted(sizes, key=lambda root: (_draw(seed, root), root)):
        if sizes[root] <= room:
            taken.add(root)
            room -= sizes[root]
        if room == 0:
            break
    if not taken or len(taken) == len(sizes):
        raise DataError(
            f"Cannot hold out {share:.1%} of {len(component)} rows: they form {len(sizes)} groups that share a query or a "
            f"positive, the largest of {max(sizes.values(), default=0)} rows, and a group is never split. Use a larger share, "
            "or give the evaluation a file of its own."
        )
    return [root in taken for root in component]


def _components(rows: Iterable[tuple[str, Sequence[str]]]) -> list[int]:
    """The component of each row, named by the smallest text id in it."""
    parent: dict[int, int] = {}

    def find(node: int) -> int:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    queries = []
    for query, positives in rows:
        root = find(text_id(query))
        queries.append(root)
        for positive in positives:
            other = find(text_id(positive))
            root, other = min(root, other), max(root, other)
            parent[other] = root
    return [find(query) for query in queries]


def _draw(seed: int, node: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed}:{node}".encode())
