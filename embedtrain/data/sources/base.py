"""What every source of training rows can do."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from embedtrain.data.index import SourceIndex
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample

log = logging.getLogger(__name__)


class Source(ABC):
    """Rows with a length and random access, the same in every process.

    A source is sent to worker processes: what it holds open (files, tables) it opens again there.

    weight        share of the mixture relative to the other sources (null = by its number of rows)
    instruction   the task, for rows that bring none; goes where the prompt says `{instruction}`
    limit         use the first `limit` rows only
    """

    def __init__(
        self, *, weight: float | None = None, instruction: str | None = None, limit: int | None = None
    ) -> None:
        if weight is not None and not weight > 0:
            raise ConfigError(f"weight={weight}: expected a number above 0. Remove the source to leave it out.")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit}: expected at least 1 row, or null for all.")
        self.weight = weight
        self.instruction = instruction
        self.limit = limit

    @property
    @abstractmethod
    def name(self) -> str:
        """Where the rows come from, for messages: a file, a folder, a data set."""

    @abstractmethod
    def _count(self) -> int:
        """All rows there are."""

    @abstractmethod
    def _read(self, row: int) -> TrainingExample:
        """The row as it is written, not yet checked."""

    def _read_all(self) -> Iterator[TrainingExample]:
        """All rows in order, for formats that read in bulk faster than one by one."""
        return (self._read(row) for row in range(len(self)))

    def __len__(self) -> int:
        return self._count() if self.limit is None else min(self.limit, self._count())

    def __getitem__(self, row: int) -> TrainingExample:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows; there is no row {row}")
        return self._finished(self._read(row))

    def __iter__(self) -> Iterator[TrainingExample]:
        return map(self._finished, self._read_all())

    @cached_property
    def index(self) -> SourceIndex:
        """Text ids of all rows. Reads, and so checks, every row once: raises DataError at the first bad one."""
        if not len(self):
            raise DataError(f"{self.name} has no rows. Expected one row for each query.")
        index = SourceIndex.build(self)
        log.info("%s: %s", self.name, self.describe())
        return index

    @property
    def fingerprint(self) -> str:
        """Hash of all that is trained on. A run is resumed only on data with the same fingerprint."""
        return self.index.fingerprint

    def describe(self) -> str:
        """How the rows are read, with the first one echoed."""
        first = self[0]
        shown = [
            f"query {_short(first.query)}",
            f"{len(first.positives)} positive(s), first {_short(first.positives[0])}",
        ]
        if first.negatives:
            shown.append(f"{len(first.negatives)} hard negative(s), first {_short(first.negatives[0])}")
        if first.instruction:
            shown.append(f"instruction {_short(first.instruction)}")
        return f"{len(self):,} rows. First row: {'; '.join(shown)}"

    def _finished(self, example: TrainingExample) -> TrainingExample:
        if example.instruction is None and self.instruction is not None:
            return replace(example, instruction=self.instruction)
        return example


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
