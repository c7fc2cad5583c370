"""Files and data sets with one row in each line or cell, by the look of the path."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path

from embedtrain.data.sources.columns import ColumnNames
from embedtrain.data.sources.jsonl import JsonLines
from embedtrain.data.sources.tables import Csv, HuggingFaceDataset, Parquet, is_saved_dataset
from embedtrain.errors import DataError

Rows = JsonLines | Csv | Parquet | HuggingFaceDataset

_BY_SUFFIX: dict[str, type[JsonLines] | type[Csv] | type[Parquet]] = {
    ".jsonl": JsonLines,
    ".jsonl.gz": JsonLines,
    ".csv": Csv,
    ".tsv": Csv,
    ".parquet": Parquet,
}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_rows(path: str, columns: Mapping[str, ColumnNames | None] | None) -> Rows:
    """A JSONL, CSV, TSV or Parquet file, a folder of Parquet files or of `save_to_disk`, or, where there is no such path, a
    data set on the Hugging Face hub. Raises DataError for anything else."""
    found = Path(path).expanduser()
    suffix = "".join(found.suffixes[-2:]) if found.suffix == ".gz" else found.suffix
    if not found.is_dir() and suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix](path=path, columns=columns)
    if is_saved_dataset(found):
        return HuggingFaceDataset(path=path, columns=columns)
    if found.is_dir() and any(found.glob("*.parquet")):
        return Parquet(path=path, columns=columns)
    if not found.exists() and _HUB_NAME.fullmatch(path):
        return HuggingFaceDataset(path=path, columns=columns)
    raise DataError(
        f"{path} {'is of no known format' if found.exists() else 'does not exist'}. Expected a file ending in "
        f"{', '.join(_BY_SUFFIX)}, a BEIR folder (with qrels/), a folder of Tevatron (train.jsonl and corpus.jsonl), a folder "
        "of *.parquet files, a folder written by save_to_disk, or the name of a data set on the Hugging Face hub (owner/name)."
    )


def names_of(rows: Rows) -> list[str]:
    """The columns that are there; of a JSONL file, those of its first row. None of a CSV file, which would be read whole."""
    if isinstance(rows, JsonLines):
        return _first_keys(rows.lines.path)
    return [] if isinstance(rows, Csv) else rows._names()


def _first_keys(path: Path) -> list[str]:
    """None where the first row is broken: who reads it will say so."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            values = json.loads(next((line for line in file if line.strip()), b"").decode("utf-8-sig"))
    except (OSError, EOFError, ValueError):
        return []
    return list(values) if isinstance(values, dict) else []
