"""Files that are whole or not there: written beside their places, renamed at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from embedtrain.errors import ConfigError, DataError


@contextmanager
def staged(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Paths to write to, which become `paths` when the block ends, in their order. When it fails, they are removed.

    The last is the one without which the others are not read. An earlier one at its place is removed before the first is
    renamed: at no moment does it stand beside files of another writing.

    Raises DataError when the disk does not take the files.
    """
    partial = tuple(path.with_name(f"{path.name}.partial") for path in paths)
    try:
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        yield partial
        for path in partial:
            _to_disk(path)
        paths[-1].unlink(missing_ok=True)
        for source, target in zip(partial, paths, strict=True):
            source.replace(target)
        for folder in {path.parent for path in paths}:
            _to_disk(folder)
    except OSError as error:
        raise DataError(
            f"{paths[-1]} could not be written: {error}. Free the disk or name another output folder."
        ) from error
    finally:
        for path in partial:
            if path.exists():
                path.unlink()


def file_name(source: str) -> str:
    """The name of a source as one of a file: what a file's must not hold is written in other characters."""
    return quote(source, safe=" ")


def named(folder: Path, name: str, suffix: str = "") -> Path:
    """`folder/name` with a suffix. Raises ConfigError for a name that would lie elsewhere."""
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise ConfigError(f"{name!r} cannot name a file. Give the source a name without slashes.")
    return folder / f"{name}{suffix}"


class Lines:
    """Writes one JSON object on each line, in UTF-8. A context: closes its file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, values: Mapping[str, Any], row: str) -> None:
        """`row`: where it came from, for the message. Raises DataError for a text that is not Unicode."""
        text = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.file.write(text.encode())
        except UnicodeEncodeError as error:
            raise not_unicode(row, error) from None


def write_lines(path: Path, rows: Iterable[tuple[Mapping[str, Any], str]]) -> None:
    """(object, where it came from) on each line."""
    with Lines(path) as lines:
        for values, row in rows:
            lines.add(values, row)


def not_unicode(row: str, error: UnicodeEncodeError) -> DataError:
    return DataError(
        f"{row}: a text holds {error.object[error.start : error.end]!r}, half a character, which no file can "
        "hold. Correct the row."
    )


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
