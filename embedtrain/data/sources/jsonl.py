"""One JSON object on each line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.columns import ColumnNames, Columns
from embedtrain.data.sources.lines import LinesFile
from embedtrain.types import TrainingExample


class JsonLines(Source):
    """Rows of a `.jsonl` or `.jsonl.gz` file.

    The canonical row is `{"query": str, "positives": [str], "negatives": [str]}`; other names as in `columns.py`. Rows may
    differ in their keys: each is read by the names that it has.

    path      the file
    columns   role -> key or keys (null = recognised by name)
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
        self.lines = LinesFile(Path(path).expanduser())
        self.columns = columns
        self._layouts: dict[tuple[str, ...], Columns] = {}

    @property
    def where(self) -> str:
        return str(self.lines.path)

    def _mapping(self) -> str:
        return "; or ".join(layout.describe() for layout in list(self._layouts.values())[:3])

    def _count(self) -> int:
        return len(self.lines)

    def _read_all(self) -> Iterator[TrainingExample]:
        yield from super()._read_all()
        self._refuse_columns_never_seen()

    def _read(self, row: int) -> TrainingExample:
        values = self.lines.json(row)
        return self._layout(tuple(values), row).example(values, self.lines.where(row))

    def _layout(self, keys: tuple[str, ...], row: int) -> Columns:
        """The roles of the keys of a row; most files have one set of keys."""
        if keys not in self._layouts:
            where = f"{self.lines.path}, line {self.lines.number(row)}"
            if self.columns is None:
                self._layouts[keys] = Columns.recognised(keys, where)
            else:
                self._layouts[keys] = Columns.given(self.columns, keys, where, partly=True)
        return self._layouts[keys]

    def _refuse_columns_never_seen(self) -> None:
        """A row may leave a key out; a key that no row has is a mistake."""
        seen = list(dict.fromkeys(key for keys in self._layouts for key in keys))
        if self.columns is not None:
            Columns.given(self.columns, seen, self.where)
