"""Any of the formats, by the look of the path. For `data.path=my_pairs.jsonl`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.beir import BeirFolder
from embedtrain.data.sources.columns import ColumnNames
from embedtrain.data.sources.jsonl import JsonLines
from embedtrain.data.sources.tables import Csv, HuggingFaceDataset, Parquet, is_saved_dataset
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample

_BY_SUFFIX: dict[str, type[JsonLines] | type[Csv] | type[Parquet]] = {
    ".jsonl": JsonLines,
    ".jsonl.gz": JsonLines,
    ".csv": Csv,
    ".tsv": Csv,
    ".parquet": Parquet,
}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class PairsFile(Source):
    """Rows of a JSONL, CSV, TSV or Parquet file, a BEIR folder, a folder of Parquet files or of `save_to_disk`, or, where
    there is no such path, a data set on the Hugging Face hub. Takes the `train` split where there are several.

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
    found = Path(path).expanduser()
    suffix = "".join(found.suffixes[-2:]) if found.suffix == ".gz" else found.suffix
    if not found.is_dir() and suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix](path=path, columns=columns)
    if is_saved_dataset(found):
        return HuggingFaceDataset(path=path, columns=columns)
    if (found / "qrels").is_dir():
        if columns is not None:
            raise ConfigError(
                f"columns={dict(columns)}: {path} is a BEIR folder, whose keys are fixed. Leave columns out."
            )
        return BeirFolder(path=path)
    if found.is_dir() and any(found.glob("*.parquet")):
        return Parquet(path=path, columns=columns)
    if not found.exists() and _HUB_NAME.fullmatch(path):
        return HuggingFaceDataset(path=path, columns=columns)
    raise DataError(
        f"{path} {'is of no known format' if found.exists() else 'does not exist'}. Expected a file ending in "
        f"{', '.join(_BY_SUFFIX)}, a BEIR folder (with qrels/), a folder of *.parquet files, a folder written by "
        "save_to_disk, or the name of a data set on the Hugging Face hub (owner/name)."
    )
