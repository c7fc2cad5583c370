"""Small files of real text in the form that each kind of source reads: docstrings and sources of the standard library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedtrain.data.stdlib import StandardLibraryPairs

ROWS = 24
_CLASSES = ("north", "east", "south", "west")  # dealt out in turn: there is something to read, and nothing to learn
_TASKS = ("search", "describe")
_WORDS = 30  # of a text; what is behind them would be cut by the small model anyway


@cache
def pairs() -> tuple[tuple[str, str], ...]:
    """(description, source) of functions that stand far apart."""
    source = StandardLibraryPairs(limit=2000)
    step = len(source) // (4 * ROWS)
    examples = [source[number * step] for number in range(4 * ROWS)]
    return tuple((_short(example.query), _short(example.positives[0])) for example in examples)


def texts() -> list[str]:
    """To learn a tokenizer from."""
    return [text for pair in pairs() for text in pair]


def write_source(node: Mapping[str, Any], path: Path, *, negatives: int) -> dict[str, Any]:
    """A file beside `path` for a source of the kind of `node`, and the settings that differ to read it.

    negatives: hard ones that each row brings, where its kind brings any.
    """
    kind = str(node["_target_"]).rpartition(".")[2]
    if kind == "ChunkedDocuments":
        return _lines(path, _chunked(), {})
    if kind == "LabeledTexts":
        form = {"text": "text", "label": "label", "descriptions": None, "num_offered": 4}
        return _lines(path, _labeled(), form)
    if kind == "Texts":
        return _lines(path, [{"text": document} for _, document in pairs()[:ROWS]], {"field": "text"})
    if kind == "StandardLibraryPairs":
        return {"limit": ROWS}
    columns = node.get("columns") or {}
    rows = list(_rows(negatives, scored="scores" in columns, node=node))
    roles: dict[str, Any] = {"query": "query", "positives": "positives"}
    roles |= {"negatives": "negatives"} if negatives else {}
    roles |= {role: role for role in ("scores", "label", "instruction") if role in columns}
    if node.get("split_by"):  # its parts are of one task each, so one column says which
        return _table(path.with_suffix(".parquet"), rows, roles, node["split_by"])
    target = {"_target_": "embedtrain.data.sources.JsonLines", "columns": roles}
    return _lines(path, rows, target)


def _table(path: Path, rows: list[dict[str, Any]], roles: dict[str, Any], split_by: str) -> dict[str, Any]:
    tasks = [_TASKS[number % len(_TASKS)] for number in range(len(rows))]
    pq.write_table(pa.Table.from_pylist(rows).append_column(split_by, pa.array(tasks)), path)
    return {"_target_": "embedtrain.data.sources.Parquet", "path": str(path), "columns": roles, "parts": None}


def _rows(negatives: int, *, scored: bool, node: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    known = pairs()
    low, high = node.get("score_range") or (-10.0, 10.0)  # without a range: logits, as cross-encoders give them
    for number in range(ROWS):
        query, document = known[number]
        others = [known[(number + 1 + k) % len(known)][1] for k in range(negatives)]
        row: dict[str, Any] = {"query": query, "positives": [document], "negatives": others}
        if scored:  # how many of the query's words a document has: a grade that is there to be learned
            shared = [_overlap(query, text) for text in (document, *others)]
            row["scores"] = [low + (high - low) * share for share in shared]
        yield row | {"label": _CLASSES[number % 4], "instruction": "Find the function that does this."}


def _chunked() -> list[dict[str, Any]]:
    known = pairs()
    return [
        {"query": known[i][0], "chunks": [known[i + k][1][:30] for k in range(3)], "answer": 0} for i in range(ROWS)
    ]


def _labeled() -> list[dict[str, Any]]:
    return [{"text": query, "label": _CLASSES[i % 4]} for i, (query, _) in enumerate(pairs()[:ROWS])]


def _lines(path: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path), **settings}


def _overlap(query: str, text: str) -> float:
    words = set(query.lower().split())
    return len(words & set(text.lower().split())) / max(1, len(words))


def _short(text: str) -> str:
    return " ".join(text.split()[:_WORDS])
