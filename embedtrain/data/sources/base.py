"""What every source of training rows can do."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import compress, islice
from typing import Any, TypedDict

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.data.index import SourceIndex, check
from embedtrain.data.splits import held_out as is_held_out
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import Role, TrainingExample

log = logging.getLogger(__name__)


class SourceSettings(TypedDict, total=False):
    """The keyword arguments that every source takes besides its own: what `**common` is. Meanings: see `Source`."""

    weight: float | None
    instruction: str | None
    limit: int | None
    held_out: Mapping[str, Any] | None
    score_range: Sequence[float] | None
    batch_size: int | None
    texts_per_label: int | None
    num_positives: int | None
    num_negatives: int | None
    max_query_length: int | None
    max_document_length: int | None


class Source(ABC):
    """Rows with a length and random access, the same in every process.

    A source is sent to worker processes: what it holds open (files, tables) it opens again there.

    weight        share of the mixture relative to the other sources (null = by its number of rows)
    instruction   the task, for rows that bring none; goes where the prompt says `{instruction}`
    limit         use the first `limit` rows only
    held_out      {share: part of the rows, part: train or dev, seed: 0}: keep a part of the rows for evaluation. Two
                  sources of the same rows and share, one with `part: train` and one with `part: dev`, have no query and no
                  positive in common (`splits.py`)
    score_range   [lowest, highest] of the scores as they are written: they become 0 to 1, and others are refused. For pairs
                  graded by people, such as [0, 5] of STS

    What follows is how training batches are made of the rows (`sampling.py`); evaluation does not read it.

    batch_size            queries of a global batch (null = training.global_batch_size); needs one_source batches
    texts_per_label       batches of batch_size / texts_per_label classes with that many rows each, as losses that find
                          their pairs in the batch need them (FaceNet, arXiv:1503.03832); needs one_source and labelled rows
    num_positives,
    num_negatives         drawn per query at each visit (null = data.num_positives, data.num_negatives)
    max_query_length,
    max_document_length   tokens (null = encoder.max_query_length, encoder.max_document_length)
    """

    def __init__(
        self,
        *,
        weight: float | None = None,
        instruction: str | None = None,
        limit: int | None = None,
        held_out: Mapping[str, Any] | None = None,
        score_range: Sequence[float] | None = None,
        batch_size: int | None = None,
        texts_per_label: int | None = None,
        num_positives: int | None = None,
        num_negatives: int | None = None,
        max_query_length: int | None = None,
        max_document_length: int | None = None,
    ) -> None:
        if weight is not None and not weight > 0:
            raise ConfigError(f"weight={weight}: expected a number above 0. Remove the source to leave it out.")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit}: expected at least 1 row, or null for all.")
        if held_out is not None:
            _check_held_out(held_out)
        if score_range is not None and not (len(score_range) == 2 and score_range[0] < score_range[1]):
            raise ConfigError(f"score_range={list(score_range)}: expected [lowest, highest], for example [0, 5].")
        _at_least(1, batch_size=batch_size, num_positives=num_positives)
        _at_least(1, max_query_length=max_query_length, max_document_length=max_document_length)
        _at_least(0, num_negatives=num_negatives)
        _at_least(2, texts_per_label=texts_per_label)
        self.weight = weight
        self.instruction = instruction
        self.limit = limit
        self.held_out = held_out
        self.score_range = score_range
        self.batch_size = batch_size
        self.texts_per_label = texts_per_label
        self.num_positives = num_positives
        self.num_negatives = num_negatives
        self.max_lengths: dict[Role, int | None] = {"query": max_query_length, "document": max_document_length}

    def as_sources(self, name: str) -> dict[str, Source]:
        """What it is in a mixture, where it is called `name`: one source, or several."""
        return {name: self}

    @property
    def settings(self) -> SourceSettings:
        """All of them but those that say which rows there are."""
        return {
            "weight": self.weight,
            "instruction": self.instruction,
            "score_range": self.score_range,
            "batch_size": self.batch_size,
            "texts_per_label": self.texts_per_label,
            "num_positives": self.num_positives,
            "num_negatives": self.num_negatives,
            "max_query_length": self.max_lengths["query"],
            "max_document_length": self.max_lengths["document"],
        }

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
        self.refuse_empty()
        index = SourceIndex.build(self)
        log.info("%s: %s", self.where, self.describe())
        return index

    def refuse_empty(self) -> None:
        if not len(self):
            raise DataError(f"{self.where} has no rows. Expected one row for each query.")

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
            example = replace(example, instruction=self.instruction)
        if self.score_range is not None:
            example = replace(example, scores=_scaled(example, *self.score_range))
        return example


def _scaled(example: TrainingExample, low: float, high: float) -> tuple[float, ...]:
    """The scores of a row, from [low, high] to [0, 1]."""
    if example.scores is None:
        raise DataError(
            f"{example.row}: score_range=[{low:g}, {high:g}], and the row has no scores. Name their column "
            "(columns: {scores: <column>}), or set score_range to null."
        )
    for score in example.scores:
        if not low <= score <= high:
            raise DataError(
                f"{example.row}: the score {score:g} is not in score_range=[{low:g}, {high:g}]. Correct the row or the range."
            )
    return tuple((score - low) / (high - low) for score in example.scores)


def _at_least(least: int, **given: int | None) -> None:
    for name, value in given.items():
        if value is not None and value < least:
            raise ConfigError(f"{name}={value}: expected at least {least}, or null.")


def _check_held_out(held_out: Mapping[str, Any]) -> None:
    unknown = set(held_out) - {"share", "part", "seed"}
    if unknown or "share" not in held_out or held_out.get("part") not in ("train", "dev"):
        raise ConfigError(f"held_out={dict(held_out)}: expected {{share: 0.1, part: train or dev, seed: 0}}.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
