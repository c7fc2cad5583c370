"""The rows of this program, with how each negative was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from embedtrain.data.writers.files import named, staged, write_lines
from embedtrain.data.writers.rows import MinedRow, Written, count_lost

_KEEPS = ("instructions", "labels", "scores", "ranks_and_reasons")


def write_canonical(folder: Path, name: str, rows: Iterable[MinedRow]) -> Written:
    """`<name>.jsonl`, one row on each line:

        {"query": str, "positives": [str], "negatives": [str], "scores": [number], "instruction": str, "label": str,
         "mined": {"scores": [number or null], "ranks": [int], "reasons": [str], "by": str}}

    `scores` are those of positives and negatives where all have one, `instruction` and `label` where there is one.
    """
    path = named(folder, name, ".jsonl")
    lost: Counter[str] = Counter()
    count = 0

    def lines() -> Iterator[tuple[dict[str, Any], str]]:
        nonlocal count
        for row in rows:
            count_lost(lost, row, _KEEPS)
            count += 1
            yield _line(row), row.example.row

    with staged(path) as (partial,):
        write_lines(partial, lines())
    return Written((path,), count, dict(lost))


def _line(row: MinedRow) -> dict[str, Any]:
    example = row.example
    line: dict[str, Any] = {
        "query": example.query,
        "positives": list(example.positives),
        "negatives": list(example.negatives),
    }
    if row.scores is not None:
        line["scores"] = list(row.scores)
    if example.instruction is not None:
        line["instruction"] = example.instruction
    if example.label is not None:
        line["label"] = example.label
    line["mined"] = {
        "scores": list(row.known_scores),
        "ranks": list(map(int, row.ranks)),
        "reasons": list(row.reasons),
        "by": row.scored_by,
    }
    return line
