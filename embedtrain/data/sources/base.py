"""What every source of training rows can do."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import compress, islice
from typing import Any

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.data.index import SourceIndex, check
from embedtrain.data.splits import held_out as is_held_out
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample

log = logging.getLogger(__name__)


class Source(ABC):
    """Rows with a length and random access, the same in every process.

    A source is sent to worker processes: what it holds open (files, tables) it opens again there.

    weight        share of the mixture relative to the other sources (null = by its number of rows)
    instruction   the task, for rows that bring none; goes where the prompt says `{instruction}`
    limit         use the first `limit` rows only
    held_out      {share: part of the rows, part: train or dev, seed: 0}: keep a part of the rows for evaluation. Two
                  sources of the same rows and share, one with `part: train` and one with `part: dev`, have no query and no
                  positive in common (`splits.py`)
    """

    def __init__(
        self,
        *,
        weight: float | None = None,
        instruction: str | None = None,
        limit: int | None = None,
        held_out: Mapping[str, Any] | None = None,
    ) -> None:
        if weight is not None and not weight > 0:
            raise ConfigError(f"weight={weight}: expected a number above 0. Remove the source to leave it out.")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit}: expected at least 1 row, or null for all.")
        if held_out is not None:
            _check_held_out(held_out)
        self.weight = weight
        self.instruction = instruction
        self.limit = limit
        self.held_out = held_out

    @property
    @abstractmethod
    def where(self) -> str:
        """Where the rows come from, for messages: a file, a folder, a data set."""

    @abstractmethod
    def _count(self) -> int:
        """All rows there are."""

    @abstractmethod
    def _read(self, row: int) -> TrainingExample:
        """The row as it is written, not yet checked."""

    def _read_all(self) -> Iterator[TrainingExample]:
        """All rows in order, for formats that read in bulk faster than one by one."""
        return map(self._read, range(self._count()))

    def __len__(self) -> int:
        return self._kept.size if self._kept is not None else self._limited_count()

    def __getitem__(self, row: int) -> TrainingExample:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.where} has {len(self)} rows; there is no row {row}")
        return self._finished(self._read(row if self._kept is None else int(self._kept[row])))

    def __iter__(self) -> Iterator[TrainingExample]:
        rows: Iterator[TrainingExample] = islice(self._read_all(), self.limit)
        if self._kept is not None:
            kept = np.zeros(self._limited_count(), dtype=np.bool_)
            kept[self._kept] = True
            rows = compress(rows, kept)
        return map(self._finished, rows)

    @cached_property
    def index(self) -> SourceIndex:
        """Text ids of all rows. Reads, and so checks, every row once: raises DataError at the first bad one."""
        if not len(self):
            raise DataError(f"{self.where} has no rows. Expected one row for each query.")
        index = SourceIndex.build(self)
        log.info("%s: %s", self.where, self.describe())
        return index

    @property
    def fingerprint(self) -> str:
        """Hash of all that is trained on. A run is resumed only on data with the same fingerprint."""
        return self.index.fingerprint

    def describe(self) -> str:
        """How the rows are read, with the first one echoed."""
        first = self[0]
        mapping = self._mapping()
        shown = [
            f"query {_short(first.query)}",
            f"{len(first.positives)} positive(s), first {_short(first.positives[0])}",
        ]
        if first.negatives:
            shown.append(f"{len(first.negatives)} hard negative(s), first {_short(first.negatives[0])}")
        if first.instruction:
            shown.append(f"instruction {_short(first.instruction)}")
        return f"{len(self):,} rows. {mapping and mapping + '. '}First row: {'; '.join(shown)}"

    def _mapping(self) -> str:
        """Which columns were taken for what, where there was something to decide."""
        return ""

    def _limited_count(self) -> int:
        return self._count() if self.limit is None else min(self.limit, self._count())

    @cached_property
    def _kept(self) -> Ints | None:
        """Rows on this side of `held_out`; None is all."""
        if self.held_out is None:
            return None
        rows = []
        for example in islice(self._read_all(), self.limit):
            check(example)
            rows.append((example.query, example.positives))
        try:
            out = is_held_out(rows, share=self.held_out["share"], seed=self.held_out.get("seed", 0))
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from None
        return np.flatnonzero(np.array(out) == (self.held_out["part"] == "dev")).astype(np.int64)

    def _finished(self, example: TrainingExample) -> TrainingExample:
        if example.instruction is None and self.instruction is not None:
            return replace(example, instruction=self.instruction)
        return example


def _check_held_out(held_out: Mapping[str, Any]) -> None:
    unknown = set(held_out) - {"share", "part", "seed"}
    if unknown or "share" not in held_out or held_out.get("part") not in ("train", "dev"):
        raise ConfigError(f"held_out={dict(held_out)}: expected {{share: 0.1, part: train or dev, seed: 0}}.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
