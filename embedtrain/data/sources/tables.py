"""Rows of a table: CSV, TSV, Parquet, and data sets of the Hugging Face library."""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow as pa
import pyarrow.parquet as pq

from embedtrain.data.draws import Ints
from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.columns import ColumnNames, Columns
from embedtrain.data.sources.lines import not_utf8
from embedtrain.data.sources.split import Parts, check_parts, parts_of
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample

if TYPE_CHECKING:
    import datasets

_BULK = 1024  # rows turned into Python values at a time when all are read
_LONGEST_CELL = 2**31 - 1


class Table(Source):
    """Rows of a source that has named columns, known before any row is read."""

    def __init__(
        self,
        columns: Mapping[str, ColumnNames | None] | None,
        split_by: str | None,
        parts: Parts | None,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        check_parts(split_by, parts)
        self.given_columns = columns
        self.split_by = split_by
        self.parts = dict(parts or {})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    @property
    @abstractmethod
    def _table(self) -> Any:
        """The open table; opened again in every process."""

    @abstractmethod
    def _names(self) -> list[str]:
        """The columns that are there."""

    @abstractmethod
    def _cells(self, column: str) -> Iterator[pa.Array]:
        """All cells of a column, in order, some at a time."""

    @abstractmethod
    def _read_some(self, rows: Ints) -> Iterator[TrainingExample]:
        """Rows by their numbers, in bulk."""

    def as_sources(self, name: str) -> dict[str, Source]:
        if self.split_by is None:
            return super().as_sources(name)
        return parts_of(self, name, settings=self.settings, given=self.parts)

    @cached_property
    def columns(self) -> Columns:
        if self.given_columns is None:
            return Columns.recognised(self._names(), self.where)
        return Columns.given(self.given_columns, self._names(), self.where)

    def _mapping(self) -> str:
        return self.columns.describe()

    def _place(self, row: int) -> str:
        return f"{Path(self.where).name}: row {row + 1}"

    def _example(self, values: Mapping[str, Any], row: int) -> TrainingExample:
        return self.columns.example(values, self._place(row))


class _ArrowTable(Table):
    """A table in memory."""

    @property
    @abstractmethod
    def _table(self) -> pa.Table: ...

    def _count(self) -> int:
        return self._table.num_rows

    def _read(self, row: int) -> TrainingExample:
        table = self._table
        return self._example({name: table.column(name)[row].as_py() for name in self.columns.used}, row)

    def _read_all(self) -> Iterator[TrainingExample]:
        row = 0
        for batch in self._table.select(self.columns.used).to_batches(_BULK):
            for values in batch.to_pylist():
                yield self._example(values, row)
                row += 1

    def _read_some(self, rows: Ints) -> Iterator[TrainingExample]:
        used = self._table.select(self.columns.used)
        for some in _bulks(rows):
            for row, values in zip(some.tolist(), used.take(some).to_pylist(), strict=True):
                yield self._example(values, row)


class Csv(_ArrowTable):
    """Rows of a CSV or TSV file in UTF-8 whose first line names the columns. An empty cell is an absent value.

    In a `.csv` double quotes enclose a cell; in a `.tsv` they are characters like any other, and a cell has no tab or line break.

    path        the file; held in memory
    columns     role -> column or columns (null = recognised by name)
    delimiter   null = a tab for `.tsv`, else a comma
    split_by    a column: each of its values is a source of its own, `<name>/<value>`; for training sources
    parts       value -> {weight: ..., instruction: ...} of that part, or null to leave it out
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        columns: Mapping[str, ColumnNames | None] | None = None,
        delimiter: str | None = None,
        split_by: str | None = None,
        parts: Parts | None = None,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(columns, split_by, parts, **common)
        self.path = _existing(path)
        self.has_quotes = self.path.suffix != ".tsv"
        self.delimiter = delimiter or ("," if self.has_quotes else "\t")

    @property
    def where(self) -> str:
        return str(self.path)

    def _names(self) -> list[str]:
        return [name for name in self._table.column_names if name != _LINE]

    def _cells(self, column: str) -> Iterator[pa.Array]:
        return iter(self._table.column(column).chunks)

    @cached_property
    def _table(self) -> pa.Table:
        csv.field_size_limit(_LONGEST_CELL)
        with self.path.open("rb") as file:
            rows = csv.reader(
                _decoded(file, self.path),
                delimiter=self.delimiter,
                quoting=csv.QUOTE_MINIMAL if self.has_quotes else csv.QUOTE_NONE,
                strict=True,
            )
            header = next(rows, [])
            if not header:
                raise DataError(f"{self.path} is empty. Expected a first line with the names of the columns.")
            if len(set(header)) < len(header):
                raise DataError(f"{self.path}: two columns have the same name in {header}. Rename one.")
            return pa.Table.from_batches(list(self._batches(rows, header)), _csv_schema(header))

    def _batches(self, rows: Any, header: list[str]) -> Iterator[pa.RecordBatch]:
        cells: list[list[Any]] = []
        try:
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{self.path}, line {rows.line_num}: {len(row)} cells, but the first line names {len(header)} "
                        f"columns. {self._remedy()}"
                    )
                cells.append([*(cell or None for cell in row), rows.line_num])
                if len(cells) == _BULK:
                    yield _csv_batch(cells, header)
                    cells = []
        except csv.Error as error:
            raise DataError(f"{self.path}, line {rows.line_num}: {error}. Correct the quotes of this line.") from None
        if cells:
            yield _csv_batch(cells, header)

    def _remedy(self) -> str:
        if self.has_quotes:
            return f"Put cells with {self.delimiter!r} or line breaks in double quotes."
        return f"Take {self.delimiter!r} and line breaks out of the cells, or write a .csv, where double quotes enclose them."

    def _place(self, row: int) -> str:
        return f"{self.path.name}:{self._table.column(_LINE)[row].as_py()}"

    def _example(self, values: Mapping[str, Any], row: int) -> TrainingExample:
        scores = {name: values[name] for name in self.columns.scores if values[name] is not None}
        return super()._example(
            {**values, **{name: self._score(cell, name, row) for name, cell in scores.items()}}, row
        )

    def _score(self, cell: str, name: str, row: int) -> float:
        try:
            return float(cell)
        except ValueError:
            raise DataError(f"{self._place(row)}: {name} is {cell[:40]!r}. Expected a number.") from None


class Parquet(_ArrowTable):
    """Rows of a Parquet file, or of all `*.parquet` files of a folder in the order of their names.

    path       the file or folder; the columns that are used are held in memory
    columns    role -> column or columns (null = recognised by name)
    split_by   a column: each of its values is a source of its own, `<name>/<value>`; for training sources
    parts      value -> {weight: ..., instruction: ...} of that part, or null to leave it out
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        columns: Mapping[str, ColumnNames | None] | None = None,
        split_by: str | None = None,
        parts: Parts | None = None,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(columns, split_by, parts, **common)
        self.path = _existing(path)
        self.files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        if not self.files:
            raise DataError(f"{self.path} holds no *.parquet file.")

    @property
    def where(self) -> str:
        return str(self.path)

    def _names(self) -> list[str]:
        return self._reading(self.files[0], lambda file: list(pq.read_schema(file).names))

    def _cells(self, column: str) -> Iterator[pa.Array]:
        for table in self._tables([column]):
            yield from table.column(column).chunks

    @cached_property
    def _table(self) -> pa.Table:
        return pa.concat_tables(self._tables(self.columns.used), promote_options="permissive")

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Some columns of each file."""
        for file in self.files:
            table = self._reading(file, lambda f: pq.read_table(f, columns=columns))
            missing = [name for name in columns if name not in table.column_names]
            if missing:
                raise DataError(f"{file}: there is no column {missing[0]!r}, which {self.files[0].name} has.")
            yield table

    @staticmethod
    def _reading(file: Path, read: Any) -> Any:
        try:
            return read(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file} is not a Parquet file that can be read: {error}") from None


class HuggingFaceDataset(Table):
    """Rows of a data set of the Hugging Face `datasets` library, memory-mapped.

    path       a name on the hub ("sentence-transformers/all-nli"), or a folder written by `save_to_disk`
    name       the configuration ("pair"), where the data set has several
    split      "train", or any split expression of the library
    revision   commit or tag of the data set on the hub
    columns    role -> column or columns (null = recognised by name)
    split_by   a column: each of its values is a source of its own, `<name>/<value>`; for training sources
    parts      value -> {weight: ..., instruction: ...} of that part, or null to leave it out
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        columns: Mapping[str, ColumnNames | None] | None = None,
        split_by: str | None = None,
        parts: Parts | None = None,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(columns, split_by, parts, **common)
        self.path, self.name, self.split, self.revision = path, name, split, revision
        if is_saved_dataset(Path(path)) and (name or revision):
            raise ConfigError(f"{path} is a folder written by save_to_disk: it has no name and no revision to choose.")

    @property
    def where(self) -> str:
        return "/".join(part for part in (self.path, self.name, self.split) if part)

    def _names(self) -> list[str]:
        return self._table.column_names

    def _count(self) -> int:
        return self._table.num_rows

    def _read(self, row: int) -> TrainingExample:
        return self._example(self._selected[row], row)

    def _read_all(self) -> Iterator[TrainingExample]:
        row = 0
        for batch in self._selected.iter(_BULK):
            for cells in zip(*batch.values(), strict=True):
                yield self._example(dict(zip(batch, cells, strict=True)), row)
                row += 1

    def _read_some(self, rows: Ints) -> Iterator[TrainingExample]:
        for some in _bulks(rows):
            batch = self._selected[some.tolist()]
            for row, cells in zip(some.tolist(), zip(*batch.values(), strict=True), strict=True):
                yield self._example(dict(zip(batch, cells, strict=True)), row)

    def _cells(self, column: str) -> Iterator[pa.Array]:
        for batch in self._table.select_columns([column]).with_format("arrow").iter(_BULK):
            yield from batch.column(column).chunks

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_selected"}

    def _place(self, row: int) -> str:
        return f"{self.where}: row {row + 1}"

    @cached_property
    def _selected(self) -> datasets.Dataset:
        return self._table.select_columns(self.columns.used)

    @cached_property
    def _table(self) -> datasets.Dataset:
        import datasets  # takes seconds, and most runs need none of it

        if not is_saved_dataset(Path(self.path)):
            return self._load()
        saved = datasets.load_from_disk(self.path)
        if isinstance(saved, datasets.Dataset):
            return saved
        if self.split not in saved:
            raise DataError(f"{self.path} has no split {self.split!r}. Its splits are {', '.join(map(str, saved))}.")
        return saved[self.split]

    def _load(self) -> datasets.Dataset:
        import datasets

        try:
            return datasets.load_dataset(self.path, self.name, split=self.split, revision=self.revision)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # all that the library raises for names, splits and the net
            raise DataError(
                f"the data set {self.where} could not be loaded: {str(error).strip().splitlines()[0]} Is it a file or "
                "folder? Then correct the path. Without a connection, give a folder written by `save_to_disk`, or the "
                "rows as JSONL, CSV or Parquet."
            ) from None


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _bulks(rows: Ints) -> Iterator[Ints]:
    return (rows[start : start + _BULK] for start in range(0, rows.size, _BULK))


_LINE = "\0line"  # the line of each row, beside the columns of a CSV file; no header can hold a null character


def _csv_schema(header: list[str]) -> pa.Schema:
    return pa.schema([*((name, pa.large_string()) for name in header), (_LINE, pa.int64())])


def _csv_batch(cells: list[list[Any]], header: list[str]) -> pa.RecordBatch:
    schema = _csv_schema(header)
    columns = zip(zip(*cells, strict=True), schema.types, strict=True)
    return pa.RecordBatch.from_arrays([pa.array(column, kind) for column, kind in columns], schema=schema)


def _decoded(file: Any, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(path, number, error) from None


def _existing(path: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{found} does not exist. Expected a file with rows of pairs.")
    return found
