"""Parquet files for sentence-transformers, row by row and without holding them all.

A column is for all rows: scores that some rows lack would be null there, which its collator refuses. So the scores are
written while they come, and taken out at the end where one is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedtrain.data.writers.files import not_unicode

ROWS_AT_A_TIME = 4096  # a row group

TEXT = pa.string()
TEXTS = pa.list_(pa.string())
SCORES = pa.list_(pa.float64())


def write_table(path: Path, schema: pa.Schema, rows: Iterable[tuple[dict[str, Any], str]]) -> None:
    """(row, where it came from). Raises DataError for a text that is not Unicode."""
    with pq.ParquetWriter(path, schema) as out:
        source = iter(rows)
        while group := list(islice(source, ROWS_AT_A_TIME)):
            out.write_table(_table(group, schema))


def rewrite_table(path: Path, schema: pa.Schema, change: Callable[[pa.Table], pa.Table]) -> None:
    """Every row group changed, to a table of `schema`."""
    scratch = path.with_name(f"{path.name}.scratch")
    try:
        with pq.ParquetFile(path) as before, pq.ParquetWriter(scratch, schema) as after:
            for group in _groups(before):
                after.write_table(change(group))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def without(path: Path, schema: pa.Schema, column: str) -> None:
    """Take a column out of the file at `path`, which has `schema`."""
    rest = schema.remove(schema.get_field_index(column))
    rewrite_table(path, rest, lambda table: table.select(rest.names))


def _groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    for number in range(file.num_row_groups):
        yield file.read_row_group(number)


def _table(group: list[tuple[dict[str, Any], str]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist([values for values, _ in group], schema)
    except UnicodeEncodeError as error:
        for values, row in group:
            try:
                pa.Table.from_pylist([values], schema)
            except UnicodeEncodeError:
                raise not_unicode(row, error) from None
        raise
