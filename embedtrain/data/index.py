"""What the planner must know of every row without reading it again: the identity of its texts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from embedtrain.data.draws import Ints
from embedtrain.errors import DataError
from embedtrain.types import NO_LABEL, TrainingExample, text_id


@dataclass(frozen=True)
class SourceIndex:
    """Text ids of R rows. Row r has positives `positive_ids[positive_offsets[r]:positive_offsets[r + 1]]`; negatives alike.

    `fingerprint` is a hash of all texts, scores, labels and instructions in their order: equal data, equal fingerprint, in
    whatever file format.
    """

    query_ids: Ints  # [R]
    positive_ids: Ints
    positive_offsets: Ints  # [R + 1]
    negative_ids: Ints
    negative_offsets: Ints  # [R + 1]
    label_ids: Ints  # [R] class of each row, NO_LABEL where it has none
    fingerprint: str

    @classmethod
    def build(cls, examples: Iterable[TrainingExample]) -> SourceIndex:
        """One pass over all rows. Raises DataError at the first row that cannot be trained on."""
        digest = xxhash.xxh3_128()
        queries: list[int] = []
        positives: list[int] = []
        negatives: list[int] = []
        num_positives: list[int] = []
        num_negatives: list[int] = []
        labels: list[int] = []
        for example in examples:
            check(example)
            queries.append(text_id(example.query))
            positives.extend(map(text_id, example.positives))
            negatives.extend(map(text_id, example.negatives))
            num_positives.append(len(example.positives))
            num_negatives.append(len(example.negatives))
            labels.append(NO_LABEL if example.label is None else text_id(example.label))
            if example.scores is not None:
                digest.update(repr((len(queries), example.scores)).encode())
            if example.order is not None:
                digest.update(repr((len(queries), example.order)).encode())
            if example.instruction is not None:
                digest.update(repr((len(queries), example.instruction)).encode())
        arrays = {
            "query_ids": np.array(queries, dtype=np.int64),
            "positive_ids": np.array(positives, dtype=np.int64),
            "positive_offsets": _offsets(num_positives),
            "negative_ids": np.array(negatives, dtype=np.int64),
            "negative_offsets": _offsets(num_negatives),
        }
        for array in arrays.values():
            digest.update(array.tobytes())
        label_ids = np.array(labels, dtype=np.int64)
        if (label_ids != NO_LABEL).any():
            digest.update(label_ids.tobytes())
        return cls(fingerprint=digest.hexdigest(), label_ids=label_ids, **arrays)

    def __len__(self) -> int:
        return self.query_ids.size

    @property
    def num_positives(self) -> Ints:
        return np.diff(self.positive_offsets)

    @property
    def num_negatives(self) -> Ints:
        return np.diff(self.negative_offsets)

    def known_positives(self, row: int) -> list[int]:
        """Ids of all positives of this row and of every other row that asks the same query."""
        rows = self._rows_of_query
        if rows is None:
            return self.positive_ids[self.positive_offsets[row] : self.positive_offsets[row + 1]].tolist()
        order, ordered = rows
        first = np.searchsorted(ordered, self.query_ids[row], side="left")
        last = np.searchsorted(ordered, self.query_ids[row], side="right")
        spans = [self.positive_ids[self.positive_offsets[r] : self.positive_offsets[r + 1]] for r in order[first:last]]
        return np.unique(np.concatenate(spans)).tolist()

    @cached_property
    def _rows_of_query(self) -> tuple[Ints, Ints] | None:
        """Rows sorted by query; None where every query is asked once."""
        order = np.argsort(self.query_ids, kind="stable")
        ordered = self.query_ids[order]
        return (order, ordered) if (ordered[1:] == ordered[:-1]).any() else None


def check(example: TrainingExample) -> None:
    """Raises DataError, naming the row, where an example cannot be trained on."""
    if not example.positives:
        raise DataError(
            f"{example.row}: the row has no positive. Every query needs at least one document that answers it."
        )
    for role, texts in (
        ("query", (example.query,)),
        ("positives", example.positives),
        ("negatives", example.negatives),
    ):
        for number, text in enumerate(texts):
            where = role if role == "query" else f"{role}[{number}]"
            if not isinstance(text, str):
                raise DataError(f"{example.row}: {where} is {_shown(text)}. Expected a text.")
            if not text.strip():
                raise DataError(f"{example.row}: {where} is empty. Remove it, or the row.")
    documents = len(example.positives) + len(example.negatives)
    if example.scores is not None and len(example.scores) != documents:
        raise DataError(
            f"{example.row}: {len(example.scores)} scores for {len(example.positives)} positives and "
            f"{len(example.negatives)} negatives. Expected one for each, positives first."
        )
    if example.scores is not None and not all(map(math.isfinite, example.scores)):
        raise DataError(f"{example.row}: the scores are {list(example.scores)}. Expected finite numbers.")


def _offsets(counts: list[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(np.array(counts, dtype=np.int64))]).astype(np.int64)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
