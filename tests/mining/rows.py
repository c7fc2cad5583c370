"""A source of rows that a test writes down."""

from __future__ import annotations

from collections.abc import Sequence

from embedtrain.data.sources.base import Source
from embedtrain.types import TrainingExample


class Rows(Source):
    def __init__(self, rows: Sequence[TrainingExample], **common) -> None:
        super().__init__(**common)
        self.rows = list(rows)

    @property
    def where(self) -> str:
        return "rows"

    def _count(self) -> int:
        return len(self.rows)

    def _read(self, row: int) -> TrainingExample:
        return self.rows[row]


def row(query: str, *positives: str, negatives: Sequence[str] = (), **options) -> TrainingExample:
    return TrainingExample(query=query, positives=positives, negatives=tuple(negatives), **options)
