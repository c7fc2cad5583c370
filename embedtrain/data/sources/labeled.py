"""Classification data as pairs: texts and their classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Unpack

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.data.index import check
from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.classes import Classes
from embedtrain.data.sources.pairs import PairsFile
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample, text_id

log = logging.getLogger(__name__)

_SHOWN = 5  # names of classes in a message


class LabeledTexts(Source):
    """A text and its class on each row of a JSONL, CSV, TSV or Parquet file, or of a Hugging Face data set.

        form      positive                            hard negatives
        example   another text of the same class      texts of other classes
        label     the text of the class               the texts of other classes

    Lee et al. 2024 (arXiv:2405.17428, NV-Embed v2): `label` for two classes and `example` for more, which gained 1.5 points on
    MTEB. There each query is contrasted with its own hard negatives alone
    (loss.negatives=hard_only): a text of another row may be of the same class. Among in-batch negatives take those of the
    row's class out (loss=class_masked), and draw no hard negatives (num_negatives=0), which carry no class of their own.

    What a row offers is a pure function of (seed, row): `num_offered` texts or classes of each side. Each visit takes
    `num_positives` and `num_negatives` of them by turns, as from any other row. Every example carries its label. Rows whose
    class has no other text offer nothing in `example` form: they are left out and counted. `limit` and `held_out` choose among
    the rows of the file, by their texts, before anything is drawn: no text of one side is a positive or negative on the other.

    path          what to read: a file, a folder of Parquet files or of save_to_disk, or the name of a data set on the hub
    text, label   their columns
    form          see above
    descriptions  class -> its text, of all classes (null = the names of the classes); form label
    num_offered   positives, and negatives, that a row has to draw from; form label: negatives (null = all other classes)
    seed          of what a row offers
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        text: str = "text",
        label: str = "label",
        form: Literal["example", "label"] = "example",
        descriptions: Mapping[str, str] | None = None,
        num_offered: int | None = 8,
        seed: int = 0,
        **common: Unpack[SourceSettings],
    ) -> None:
        # Each text is its own positive here, so that held_out keeps equal texts on one side.
        self.rows = PairsFile(
            path=path,
            columns={"query": text, "positives": text, "label": label},
            limit=common.pop("limit", None),
            held_out=common.pop("held_out", None),
        )
        super().__init__(**common)
        if form not in ("example", "label"):
            raise ConfigError(f"form={form!r}: expected example or label.")
        if descriptions is not None and form == "example":
            raise ConfigError("descriptions: the texts of classes are read in form: label only. Set it to null.")
        if (num_offered is None and form == "example") or (num_offered is not None and num_offered < 1):
            raise ConfigError(
                f"num_offered={num_offered}: expected at least 1{', or null for all' * (form == 'label')}."
            )
        if seed < 0:
            raise ConfigError(f"seed={seed}: expected 0 or more.")
        self.form = form
        self.descriptions = None if descriptions is None else {str(name): said for name, said in descriptions.items()}
        self.label_column = label
        self.num_offered = num_offered
        self.seed = seed

    @property
    def where(self) -> str:
        return self.rows.where

    def _mapping(self) -> str:
        return f"{len(self.classes.names):,} classes, form {self.form}"

    def _count(self) -> int:
        return self._usable.size

    def _read(self, row: int) -> TrainingExample:
        return self._offered(int(self._usable[row]), self.rows.__getitem__)

    def _read_all(self) -> Iterator[TrainingExample]:
        rows = list(self.rows)  # each is read again for every row that draws it
        for row in self._usable.tolist():
            yield self._offered(row, rows.__getitem__)

    def _offered(self, row: int, read: Callable[[int], TrainingExample]) -> TrainingExample:
        """A row of the file with all that it may draw from."""
        own, count = read(row), self.num_offered
        positives: tuple[str, ...] = (self._said(own.label or ""),)
        if self.form == "label":
            negatives = tuple(map(self._said, self.classes.other_names(row, count, self.seed)))
        else:
            assert count is not None
            positives, negatives = (
                tuple(read(other).query for other in others(row, count, self.seed).tolist())
                for others in (self.classes.others_of, self.classes.outside_of)
            )
        return replace(own, positives=positives, negatives=negatives)

    def _said(self, name: str) -> str:
        return name if self.descriptions is None else self.descriptions[name]

    @cached_property
    def classes(self) -> Classes:
        """Of all rows. Reads each once. Raises DataError where one has no label, or all have the same."""
        labels: list[str] = []
        texts: list[int] = []
        for example in self.rows:
            check(example)
            if example.label is None:
                raise DataError(
                    f"{example.row}: {self.label_column} is missing or empty. Expected the class of the text. Is it in another "
                    "column? label=<column>"
                )
            labels.append(example.label)
            texts.append(text_id(example.query))
        classes = Classes.of(labels, texts)
        if len(classes.names) < 2:
            raise DataError(
                f"{self.where}: every row has the class {labels[0]!r}. At least 2 classes are needed to tell one from the other."
            )
        self._check_descriptions(classes.names)
        if classes.num_ambiguous:
            log.warning(
                "%s: %s texts have several classes; no other class is contrasted with them",
                self.where,
                f"{classes.num_ambiguous:,}",
            )
        return classes

    @cached_property
    def _usable(self) -> Ints:
        """Rows that have something to draw from."""
        classes = self.classes
        alone = np.flatnonzero(classes.sizes == 1)
        if not alone.size or self.form == "label":
            return np.arange(classes.label.size, dtype=np.int64)
        usable = np.flatnonzero(~np.isin(classes.label, alone)).astype(np.int64)
        log.warning(
            "%s: %s of %s classes have one text each, without another one to pair it with (%s): %s rows are left out",
            *(self.where, f"{alone.size:,}", f"{len(classes.names):,}", _some([classes.names[n] for n in alone])),
            f"{classes.label.size - usable.size:,}",
        )
        return usable

    def _check_descriptions(self, names: tuple[str, ...]) -> None:
        if self.descriptions is None:
            return
        missing = [name for name in names if name not in self.descriptions]
        unknown = [name for name in self.descriptions if name not in names]
        if missing or unknown:
            raise ConfigError(
                f"descriptions: {self.where} has {len(names)} classes. Without a text: {_some(missing)}; not a class: "
                f"{_some(unknown)}. Describe every class, or none (null)."
            )
        if len(set(self.descriptions.values())) < len(self.descriptions):
            raise ConfigError("descriptions: two classes have the same text, and could not be told apart. Change one.")

    def __getstate__(self) -> dict[str, Any]:
        _ = self.classes  # made here once, and not again in every worker
        return self.__dict__


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "") or "none"
