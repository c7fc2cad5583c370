"""Hard negatives that were mined for the rows of a run: one version of them, beside the data and read where it lies.

    manifest.json                  what they are and since when; written last, so a folder without it is no version
    <source>.texts.arrow           [N] the distinct documents that are a negative of some row
    <source>.text_ids.npy          [N] int64 their identities
    <source>.negatives.npy         [R, K] int64 numbers of texts; NOTHING behind the last of a short row
    <source>.scores.npy            [R, K] fp32 of a rescorer; only where one was asked
    <source>.positive_scores.npy   [P] fp32 of all rows' positives, row by row, and positive_offsets.npy [R + 1]; likewise

A row of the source keeps its query and its positives. Workers open a version by its path.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedtrain.data.draws import Ints
from embedtrain.data.writers.files import file_name
from embedtrain.errors import DataError
from embedtrain.types import TrainingExample, text_id

NOTHING = -1


@dataclass(frozen=True, slots=True)
class MinedRows:
    """The negatives of the R rows of one source, as they are written."""

    texts: Sequence[str]  # [N] distinct
    negatives: Ints  # [R, K] into texts, NOTHING behind the last
    scores: np.ndarray | None = None  # [R, K] fp32
    positive_scores: np.ndarray | None = None  # [P] fp32 of the positives of all rows, row by row
    positive_offsets: Ints | None = None  # [R + 1] where those of each row begin


def write_mined(folder: Path, sources: Mapping[str, MinedRows], manifest: Mapping[str, Any]) -> None:
    """A version, whole or not at all; one that is there is replaced. One process alone."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for source, rows in sources.items():
        name = file_name(source)
        texts = pa.table({"text": pa.array(rows.texts, pa.large_string())})
        with pa.OSFile(str(partial / f"{name}.texts.arrow"), "wb") as file, pa.ipc.new_file(file, texts.schema) as out:
            out.write_table(texts)
        np.save(partial / f"{name}.text_ids.npy", np.array([text_id(text) for text in rows.texts], dtype=np.int64))
        np.save(partial / f"{name}.negatives.npy", rows.negatives)
        if rows.scores is not None:
            for key in ("scores", "positive_scores", "positive_offsets"):
                np.save(partial / f"{name}.{key}.npy", getattr(rows, key))
    text = json.dumps({**manifest, "sources": list(sources)}, indent=2, ensure_ascii=False)
    (partial / "manifest.json").write_text(text + "\n", encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


class MinedNegatives:
    """A version, for reading. Travels to other processes as its path.

    Raises DataError where the folder holds no whole version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts: Mapping[str, Ints] | None = None
        self._width = 0
        try:
            self.manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no whole version of mined negatives ({error}). Delete the folder.") from None
        self.keep_own: bool = self.manifest["keep_own"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("path", "manifest", "keep_own", "_starts", "_width")}

    def __contains__(self, source: str) -> bool:
        return source in self.manifest["sources"]

    def window(self, starts: Mapping[str, Ints], width: int) -> MinedNegatives:
        """The same version, read as ranked lists of which row r has `width` negatives from place `starts[source][r]` on."""
        part = MinedNegatives(self.path)
        part._starts, part._width = starts, width
        return part

    def counts(self, source: str) -> Ints:
        """Mined negatives of each row, [R]."""
        counts = (self._negatives[source] != NOTHING).sum(axis=1)
        if self._starts is None:
            return counts
        return np.clip(counts - self._starts[source], 0, self._width)

    def numbers(self, source: str) -> Ints:
        """[R, K] numbers of texts of the whole version, NOTHING behind the last of a row."""
        return self._negatives[source]

    def text_ids(self, source: str) -> Ints:
        """Identities of the texts, [N]."""
        return self._array(f"{file_name(source)}.text_ids.npy")

    def text(self, source: str, number: int) -> str:
        return self._texts[source][number].as_py()

    def extend(self, example: TrainingExample, source: str, row: int) -> TrainingExample:
        """The row with its mined negatives, in place of its own ones or behind them; with scores where they have some.

        What has no score among those that have, which are the row's own negatives, has NaN.
        """
        found = self._negatives[source][row]
        count = int((found != NOTHING).sum())
        first = 0
        if self._starts is not None:
            first = int(self._starts[source][row])
            count = min(count, first + self._width)
        own = example.negatives if self.keep_own else ()
        mined = tuple(self.text(source, number) for number in found[first:count].tolist())
        scores = example.scores
        if source in self._scores:
            of_negatives, of_positives, offsets = self._scores[source]
            positives = of_positives[offsets[row] : offsets[row + 1]].tolist()
            scores = (*positives, *(math.nan for _ in own), *of_negatives[row, first:count].tolist())
        elif scores is not None:
            scores = (*scores[: len(example.positives) + len(own)], *(math.nan for _ in mined))
        return replace(example, negatives=own + mined, scores=scores)

    @cached_property
    def _negatives(self) -> dict[str, Ints]:
        return {name: self._array(f"{file_name(name)}.negatives.npy") for name in self.manifest["sources"]}

    @cached_property
    def _texts(self) -> dict[str, pa.ChunkedArray]:
        return {
            name: pa.ipc.open_file(pa.memory_map(str(self.path / f"{file_name(name)}.texts.arrow")))
            .read_all()
            .column("text")
            for name in self.manifest["sources"]
        }

    @cached_property
    def _scores(self) -> dict[str, tuple[np.ndarray, np.ndarray, Ints]]:
        """(of negatives [R, K], of positives [P], where each row's begin [R + 1]) of the sources that have them."""
        return {
            name: (
                self._array(f"{file_name(name)}.scores.npy"),
                self._array(f"{file_name(name)}.positive_scores.npy"),
                self._array(f"{file_name(name)}.positive_offsets.npy"),
            )
            for name in self.manifest["sources"]
            if (self.path / f"{file_name(name)}.scores.npy").is_file()
        }

    def _array(self, name: str) -> np.ndarray:
        try:
            return np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / name}: cut short or not an array ({error}). Delete {self.path}.") from error
