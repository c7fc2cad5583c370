"""What a writer gets and what it gives back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from embedtrain.types import TrainingExample


@dataclass(frozen=True, kw_only=True, slots=True)
class MinedRow:
    """A row whose negatives were mined, and how each of them came to be one."""

    example: TrainingExample  # `scores`: of all documents, positives first; NaN where one has none
    negative_scores: tuple[float | None, ...]  # of each negative; None or NaN where it has none
    ranks: tuple[int, ...]  # among the documents that are not known to answer, from 1; 0 where it was not searched for
    reasons: tuple[str, ...]  # why each was taken
    scored_by: str | None = None  # name of the model that gave the scores

    def __post_init__(self) -> None:
        count = len(self.example.negatives)
        given = (len(self.negative_scores), len(self.ranks), len(self.reasons))
        assert given == (count, count, count), (
            f"{self.example.row}: {count} negatives, but scores, ranks, reasons: {given}"
        )

    @property
    def scores(self) -> tuple[float, ...] | None:
        """Of all documents, positives first; None where one has none: a loss reads all or nothing."""
        scores = self.example.scores
        return None if scores is None or not all(map(math.isfinite, scores)) else tuple(map(float, scores))

    @property
    def known_scores(self) -> tuple[float | None, ...]:
        """Of each negative, None where it has none."""
        return tuple(None if score is None or math.isnan(score) else float(score) for score in self.negative_scores)

    @property
    def has_some_scores(self) -> bool:
        return self.scores is not None or any(score is not None for score in self.known_scores)


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer did."""

    files: tuple[Path, ...]
    rows: int  # as the format counts them: a row of several positives may become several
    lost: dict[str, int]  # what the format has no place for -> rows concerned


def count_lost(lost: Counter[str], row: MinedRow, keeps: Collection[str] = ()) -> None:
    """Add what a row has and a format has no place for. `keeps`: what it has a place for."""
    example = row.example
    has = {
        "instructions": example.instruction is not None,
        "labels": example.label is not None,
        "scores": row.has_some_scores,
        "ranks_and_reasons": bool(example.negatives),
        "places_of_chunks": example.order is not None,
    }
    lost.update(what for what, there in has.items() if there and what not in keeps)
