"""The rows of FlagEmbedding (github.com/FlagOpen/FlagEmbedding), which many programs read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from embedtrain.data.writers.files import named, staged, write_lines
from embedtrain.data.writers.rows import MinedRow, Written, count_lost


def write_flag_embedding(folder: Path, name: str, rows: Iterable[MinedRow]) -> Written:
    """`<name>.jsonl`, one row on each line:

        {"query": str, "pos": [str], "neg": [str], "pos_scores": [number], "neg_scores": [number], "prompt": str}

    Scores where all documents of the row have one. Its loader draws from `neg` and divides by its length: rows without
    negatives are left out. `prompt` is the instruction. The loader takes its own instruction only where the file has no
    `prompt` at all, and reads a missing one as the word None: so either every row has it, empty where there is none, or no row.
    """
    path = named(folder, name, ".jsonl")
    lost: Counter[str] = Counter()
    count = with_prompt = 0

    def lines() -> Iterator[tuple[dict[str, Any], str]]:
        nonlocal count, with_prompt
        for row in rows:
            if not row.example.negatives:
                lost["rows_without_negatives"] += 1
                continue
            keeps = ("instructions", "scores") if row.scores is not None else ("instructions",)
            count_lost(lost, row, keeps)
            count += 1
            with_prompt += row.example.instruction is not None
            yield _line(row), row.example.row

    with staged(path) as (partial,):
        write_lines(partial, lines())
        if 0 < with_prompt < count:
            _prompt_in_every_row(partial)
    return Written((path,), count, dict(lost))


def _line(row: MinedRow) -> dict[str, Any]:
    example = row.example
    line: dict[str, Any] = {"query": example.query, "pos": list(example.positives), "neg": list(example.negatives)}
    if row.scores is not None:
        line["pos_scores"] = list(row.scores[: len(example.positives)])
        line["neg_scores"] = list(row.scores[len(example.positives) :])
    if example.instruction is not None:
        line["prompt"] = example.instruction
    return line


def _prompt_in_every_row(path: Path) -> None:
    scratch = path.with_name(f"{path.name}.scratch")
    try:
        with path.open("rb") as file:
            write_lines(scratch, (({"prompt": "", **json.loads(line)}, path.name) for line in file))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
