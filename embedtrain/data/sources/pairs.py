"""Any of the formats, by the look of the path. For `data.path=my_pairs.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.beir import BeirFolder
from embedtrain.data.sources.columns import ColumnNames
from embedtrain.data.sources.jsonl import JsonLines
from embedtrain.data.sources.labeled_list import LabeledList
from embedtrain.data.sources.opening import names_of, open_rows
from embedtrain.data.sources.tevatron import Tevatron
from embedtrain.errors import ConfigError
from embedtrain.types import TrainingExample


class PairsFile(Source):
    """Rows of a JSONL, CSV, TSV or Parquet file, a BEIR folder, a folder of Parquet files or of `save_to_disk`, or, where
    there is no such path, a data set on the Hugging Face hub. Takes the `train` split where there are several.

    The rows of Tevatron (a folder of train.jsonl and corpus.jsonl, or a file with its keys) and lists of labelled documents
    (columns documents and labels) are known by their look as well.

    path      what to read
    columns   role -> column or columns (null = recognised by name)
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        columns: Mapping[str, ColumnNames | None] | None = None,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        self.inner = _open(path, columns)

    @property
    def where(self) -> str:
        return self.inner.where

    def _mapping(self) -> str:
        return self.inner._mapping()

    def _count(self) -> int:
        return len(self.inner)

    def _read(self, row: int) -> TrainingExample:
        return self.inner[row]

    def _read_all(self) -> Iterator[TrainingExample]:
        return iter(self.inner)


def _open(path: str, columns: Mapping[str, ColumnNames | None] | None) -> Source:
    folder = Path(path).expanduser()
    if (folder / "qrels").is_dir():
        _refuse(columns, f"{path} is a BEIR folder")
        return BeirFolder(path=path)
    if (folder / "train.jsonl").is_file() and (folder / "corpus.jsonl").is_file():
        _refuse(columns, f"{path} is a folder of Tevatron")
        return Tevatron(path=path)
    rows = open_rows(path, columns)
    # The name of a data set on the hub says nothing of its columns until it is loaded, which waits for the first row.
    if columns is None and folder.exists():
        names = names_of(rows)
        if isinstance(rows, JsonLines) and Tevatron.knows(names):
            return Tevatron(path=path)
        if LabeledList.knows(names):
            return LabeledList(path=path)
    return rows


def _refuse(columns: Mapping[str, ColumnNames | None] | None, what: str) -> None:
    if columns is not None:
        raise ConfigError(f"columns={dict(columns)}: {what}, whose keys are fixed. Leave columns out.")
