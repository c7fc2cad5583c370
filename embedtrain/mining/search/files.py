"""An index on disk that is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedtrain.errors import DataError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder that shall be `path`. It gets its name once all of it is on the disk.

    Raises DataError where it cannot be written, for want of space say.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        yield unfinished
        for file in unfinished.iterdir() if unfinished.is_dir() else [unfinished]:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        unfinished.replace(path)
    except BaseException as error:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # faiss has no better name for a full disk
            raise DataError(
                f"{path}: the index cannot be written ({error}). Make room, or set another miner.store."
            ) from error
        raise
