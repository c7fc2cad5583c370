"""Text files, plain or gzipped, read line by line with a place for every message."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from embedtrain.errors import DataError


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file as UTF-8 text. Raises DataError, also from within the block, for what cannot be read as such."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start} of a block). Convert the file to UTF-8."
        ) from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}).") from error


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(line, "file:number") of the lines that are not blank. Raises DataError for a file that has none."""
    found = False
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                found = True
                yield line.rstrip("\r\n"), f"{path}:{number}"
    if not found:
        raise DataError(f"{path}: the file is empty.")
