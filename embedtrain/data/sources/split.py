"""A table as several sources, one for each value of a column: MEDI and other collections keep the task of a row in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import PART, TrainingExample

if TYPE_CHECKING:
    from embedtrain.data.sources.tables import Table

Parts = Mapping[str, Mapping[str, Any] | None]

_MOST = 1000
_SETTINGS = tuple(name for name in SourceSettings.__annotations__ if name != "held_out")


class Part(Source):
    """Rows of a table. All parts of a table read through it, so that it is open once in each process.

    table     the rows                          value   what these have in common
    numbers   which rows of it, ascending [R]
    The others are those of every `Source`.
    """

    def __init__(self, *, table: Table, value: str, numbers: Ints, **common: Unpack[SourceSettings]) -> None:
        super().__init__(**common)
        self.table = table
        self.value = value
        self.numbers = numbers

    @property
    def where(self) -> str:
        return f"{self.table.where}, {self.table.split_by}={self.value}"

    def _mapping(self) -> str:
        return self.table._mapping()

    def _count(self) -> int:
        return self.numbers.size

    def _read(self, row: int) -> TrainingExample:
        return self.table._read(int(self.numbers[row]))

    def _read_all(self) -> Iterator[TrainingExample]:
        return self.table._read_some(self.numbers)


def check_parts(split_by: str | None, parts: Parts | None) -> None:
    """Raises ConfigError for parts of a table that is not split, and for settings that a part does not have."""
    if parts and split_by is None:
        raise ConfigError(
            f"parts: {', '.join(parts)}, of a table that is not split. Set split_by=<column>, or parts to null."
        )
    for value, own in (parts or {}).items():
        unknown = sorted(set(own or {}) - set(_SETTINGS))
        if unknown:
            raise ConfigError(
                f"parts.{value}: no key {', '.join(unknown)}. Expected some of {', '.join(_SETTINGS)}, or null."
            )


def parts_of(table: Table, name: str, *, settings: SourceSettings, given: Parts) -> dict[str, Source]:
    """Sources called `name/<value>`, in the order in which their values first come.

    settings   of the table; its weight is shared among its parts by their rows
    given      by value, what a part has in place of that; null leaves the part out

    Raises DataError where the column is not there, holds something else than short texts or whole numbers, or a row has none.
    """
    values, codes = _codes(table)
    kept = np.arange(table._limited_count()) if table._kept is None else table._kept
    codes = codes[kept]
    rows = {value: kept[codes == code] for code, value in enumerate(values)}
    rows = {value: numbers for value, numbers in rows.items() if numbers.size}
    unknown = [value for value in given if value not in rows]
    if unknown:
        raise ConfigError(
            f"data.sources.{name}.parts: {', '.join(unknown)} is no value of {table.split_by!r} in {table.where}. There are: "
            f"{', '.join(rows)}."
        )
    found: dict[str, Source] = {}
    for value, numbers in rows.items():
        own = given.get(value, {})
        if own is None:
            continue
        common = settings.copy()
        if settings["weight"] is not None:
            common["weight"] = settings["weight"] * numbers.size / kept.size
        found[f"{name}{PART}{value}"] = Part(table=table, value=value, numbers=numbers, **{**common, **own})
    return found


def _codes(table: Table) -> tuple[list[str], Ints]:
    """The values of the column, and the number of its value for each row [R]."""
    column = table.split_by
    assert column is not None
    if column not in table._names():
        raise DataError(
            f"{table.where}: there is no column {column!r} to split by. The columns are {', '.join(map(repr, table._names()))}. "
            "Correct split_by."
        )
    known: dict[str, int] = {}
    codes: list[Ints] = []
    row = 0
    for cells in table._cells(column):
        encoded = cells.dictionary_encode()
        numbers = [known.setdefault(_value(value, table), len(known)) for value in encoded.dictionary.to_pylist()]
        indices = encoded.indices.fill_null(len(numbers)).to_numpy(zero_copy_only=False)
        codes.append(np.array([*numbers, -1], dtype=np.int64)[indices])
        if len(known) > _MOST:
            raise DataError(
                f"{table.where}: {column!r} has more than {_MOST:,} values, and each would be a source. split_by takes the "
                "column of the task of a row, or of the data set that it is from."
            )
        missing = np.flatnonzero((codes[-1] == -1) | (codes[-1] == known.get("", -1)))
        if missing.size:
            raise DataError(
                f"{table._place(row + int(missing[0]))}: {column} is empty, so the row belongs to no part of the table. Fill it, "
                "or leave the row out."
            )
        row += len(cells)
    return list(known), np.concatenate(codes) if codes else np.empty(0, dtype=np.int64)


def _value(value: Any, table: Table) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{table.where}: {table.split_by} holds {type(value).__name__} {str(value)[:40]!r}. Expected texts or whole numbers."
        )
    return str(value).strip()
