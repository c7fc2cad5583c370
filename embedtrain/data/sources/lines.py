"""A text file as lines with random access: mapped into memory, with one integer of index for each line."""

from __future__ import annotations

import gzip
import json
import mmap
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.errors import DataError


class LinesFile:
    """The lines of a UTF-8 file that are not blank. A `.gz` is unpacked into an unnamed temporary file first.

    Opened at first use and again in every process that it is sent to.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise DataError(f"{path} {what}. Expected a file with one row on each line.")
        self.path = path
        self._opened: tuple[mmap.mmap, Ints, Ints] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self._open()[1].size

    def number(self, row: int) -> int:
        """The line of this row as an editor counts, from 1."""
        return int(self._open()[2][row])

    def where(self, row: int) -> str:
        return f"{self.path.name}:{self.number(row)}"

    def text(self, row: int) -> str:
        data, starts, _ = self._open()
        start = int(starts[row])
        stop = data.find(b"\n", start)
        line = data[start : len(data) if stop < 0 else stop]
        try:
            return line.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, self.number(row), error) from None

    def json(self, row: int) -> dict[str, Any]:
        """The line as a JSON object."""
        text = self.text(row)
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.path}, line {self.number(row)}, column {error.colno}: broken JSON ({error.msg}): "
                f"{text[:60]!r}. Expected one JSON object on each line."
            ) from None
        if not isinstance(value, dict):
            raise DataError(
                f"{self.path}, line {self.number(row)}: JSON {type(value).__name__} {text[:60]!r}. Expected an object."
            )
        return value

    def _open(self) -> tuple[mmap.mmap, Ints, Ints]:
        if self._opened is None:
            with tempfile.TemporaryFile() if self.path.suffix == ".gz" else self.path.open("rb") as file:
                if self.path.suffix == ".gz":
                    self._unpack(file)
                if not file.seek(0, 2):
                    raise DataError(f"{self.path} is empty. Expected one row on each line.")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._opened = (data, *_lines(data))
            if not self._opened[1].size:
                raise DataError(f"{self.path} has only blank lines. Expected one row on each line.")
        return self._opened

    def _unpack(self, into: Any) -> None:
        try:
            with gzip.open(self.path) as packed:
                shutil.copyfileobj(packed, into)
        except (OSError, EOFError) as error:
            raise DataError(f"{self.path} cannot be unpacked: {error}. Copy or download it again.") from None
        into.flush()


def _lines(data: mmap.mmap) -> tuple[Ints, Ints]:
    """Start and number of every line that is not blank."""
    starts: list[int] = []
    numbers: list[int] = []
    position, number = 0, 1
    while position < len(data):
        line = data.readline()
        if line.strip():
            starts.append(position)
            numbers.append(number)
        position += len(line)
        number += 1
    return np.array(starts, dtype=np.int64), np.array(numbers, dtype=np.int64)


def not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    """What to raise for a line, counted from 1, that was read as UTF-8 and is not."""
    return DataError(
        f"{path}, line {line}: byte {error.start} ({error.object[error.start : error.start + 1]!r}) is not UTF-8. "
        "Convert the file: iconv -f <its encoding> -t UTF-8."
    )
