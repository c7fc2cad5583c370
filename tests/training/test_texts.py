"""Texts of a run for its finished model: both sides of the rows of every source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedtrain.data.sources import JsonLines
from embedtrain.training.texts import texts_of


def source(folder: Path, name: str, rows: int) -> JsonLines:
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(json.dumps({"query": f"q{name}{i}", "positive": f"d{name}{i}"}) + "\n" for i in range(rows))
    )
    return JsonLines(path=str(path))


@pytest.mark.parametrize("rows", [5, 6, 8])
def test_every_row_gives_both_of_its_sides_once(rows: int, tmp_path: Path) -> None:
    sources = [source(tmp_path, "a", rows), source(tmp_path, "b", rows)]
    texts = texts_of(sources, 4 * rows)
    assert sorted(texts) == sorted(f"{side}{name}{i}" for side in "qd" for name in "ab" for i in range(rows))


def test_few_texts_are_of_many_sources(tmp_path: Path) -> None:
    sources = [source(tmp_path, name, 6) for name in "abc"]
    assert texts_of(sources, 5) == ["qa0", "da0", "qb0", "db0", "qc0"]
