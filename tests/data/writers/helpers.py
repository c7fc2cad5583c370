"""Rows to write, of all kinds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from hypothesis import strategies as st

from embedtrain.data.writers import WRITERS, MinedRow, Written
from embedtrain.types import TrainingExample

# What file formats stumble over, and any other character.
TEXTS = st.text(
    st.one_of(st.sampled_from("ab\n\r\t\"'\\,\u2028\x85\x00\ufeff😀é {}"), st.characters(codec="utf-8")),
    min_size=1,
    max_size=12,
).filter(str.strip)
SCORES = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rows(draw, labels: bool = False) -> MinedRow:
    positives = draw(st.lists(TEXTS, min_size=1, max_size=3))
    negatives = draw(st.lists(TEXTS, max_size=3))
    scores = draw(st.lists(SCORES, min_size=len(positives) + len(negatives), max_size=len(positives) + len(negatives)))
    given = draw(st.sampled_from(["all", "none", "some"]))
    of_negatives: list[float | None] = list(scores[len(positives) :]) if given != "none" else [None] * len(negatives)
    if given == "some" and negatives:
        of_negatives[-1] = math.nan
        scores[-1] = math.nan
    return MinedRow(
        example=TrainingExample(
            query=draw(TEXTS),
            positives=tuple(positives),
            negatives=tuple(negatives),
            scores=None if given == "none" else tuple(scores),
            instruction=draw(st.none() | TEXTS),
            label=draw(TEXTS) if labels else None,
            row="row 1",
        ),
        negative_scores=tuple(of_negatives),
        ranks=tuple(draw(st.integers(0, 99)) for _ in negatives),
        reasons=tuple(draw(st.sampled_from(["top", "random"])) for _ in negatives),
        scored_by=draw(st.none() | TEXTS),
    )


def row(query: str = "q", positives: Iterable[str] = ("p",), negatives: Iterable[str] = ("n",), **settings) -> MinedRow:
    """A row with scores 0.9, 0.8, ... unless `scored` is false."""
    positives, negatives = tuple(positives), tuple(negatives)
    scored = settings.pop("scored", True)
    scores = tuple(round(0.9 - number / 10, 1) for number in range(len(positives) + len(negatives)))
    return MinedRow(
        example=TrainingExample(
            query=query, positives=positives, negatives=negatives, scores=scores if scored else None, **settings
        ),
        negative_scores=scores[len(positives) :] if scored else (None,) * len(negatives),
        ranks=tuple(range(1, len(negatives) + 1)),
        reasons=("top",) * len(negatives),
        scored_by="a model",
    )


def write(kind: str, folder: Path, rows: Iterable[MinedRow], name: str = "rows") -> Written:
    return WRITERS[kind](folder, name, rows)
