"""Texts by id: each text is written once, and rows name it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.data.writers.rows import MinedRow
from embedtrain.types import text_id

_ROWS_AT_A_TIME = 4096


def content_id(text: str) -> str:
    """16 hexadecimal digits of the text itself: equal texts have equal ids, in every file that is ever written."""
    return f"{text_id(text):016x}"


class FirstSeen:
    """Which ids were not there before, in eight bytes for each (a set of numbers takes ten times that).

    Holds sorted runs, each more than twice as long as the next, so that an id is merged a few times only.
    """

    def __init__(self) -> None:
        self._runs: list[Ints] = []

    def __call__(self, ids: Ints) -> np.ndarray:
        """[n] bool: the first of its kind, among these and all earlier ones."""
        distinct, first = np.unique(ids, return_index=True)
        new = np.ones(distinct.size, dtype=np.bool_)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, distinct), run.size - 1)
            new &= run[place] != distinct
        self._add(distinct[new])
        is_first = np.zeros(ids.size, dtype=np.bool_)
        is_first[first[new]] = True
        return is_first

    def _add(self, run: Ints) -> None:
        if not run.size:
            return
        while self._runs and self._runs[-1].size <= 2 * run.size:
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")  # two sorted runs: a merge
        self._runs.append(run)


def with_new_texts(rows: Iterable[MinedRow]) -> Iterator[tuple[MinedRow, bool, list[str]]]:
    """Each row, whether its query is met for the first time, and which of its documents are."""
    queries, documents = FirstSeen(), FirstSeen()
    source = iter(rows)
    while group := list(islice(source, _ROWS_AT_A_TIME)):
        new_query = queries(_ids([row.example.query for row in group]))
        texts = [(*row.example.positives, *row.example.negatives) for row in group]
        new_text = iter(documents(_ids([text for own in texts for text in own])).tolist())
        for row, is_new, own in zip(group, new_query.tolist(), texts, strict=True):
            yield row, is_new, [text for text in own if next(new_text)]


def _ids(texts: list[str]) -> Ints:
    return np.fromiter(map(text_id, texts), dtype=np.int64, count=len(texts))
