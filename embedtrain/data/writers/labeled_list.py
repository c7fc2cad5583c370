"""Lists of labelled documents for the rerankers of sentence-transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedtrain.data.writers.files import named, staged
from embedtrain.data.writers.rows import MinedRow, Written, count_lost
from embedtrain.data.writers.tables import TEXT, TEXTS, write_table

_SCHEMA = pa.schema([("query", TEXT), ("documents", TEXTS), ("labels", pa.list_(pa.int64()))])


def write_labeled_list(folder: Path, name: str, rows: Iterable[MinedRow]) -> Written:
    """`<name>.parquet` with the columns query, documents (positives first) and labels (1 for a positive, 0 for a negative).

    A loss over lists has one column of numbers: with the labels there is no place for scores.
    """
    path = named(folder, name, ".parquet")
    lost: Counter[str] = Counter()
    count = 0

    def lists() -> Iterator[tuple[dict[str, Any], str]]:
        nonlocal count
        for row in rows:
            example = row.example
            count_lost(lost, row)
            count += 1
            labels = [1] * len(example.positives) + [0] * len(example.negatives)
            documents = [*example.positives, *example.negatives]
            yield {"query": example.query, "documents": documents, "labels": labels}, example.row

    with staged(path) as (partial,):
        write_table(partial, _SCHEMA, lists())
    return Written((path,), count, dict(lost))
