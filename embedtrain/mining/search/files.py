"""An index on disk that is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder that shall be `path`. It gets its name once all of it is on the disk."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        yield unfinished
        for file in unfinished.iterdir() if unfinished.is_dir() else [unfinished]:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        unfinished.replace(path)
    except BaseException:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
        raise
