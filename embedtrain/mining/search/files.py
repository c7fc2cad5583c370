"""An index on disk: a folder for it, and files that are there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedtrain import distributed
from embedtrain.errors import DataError
from embedtrain.store.ranks import on_main

_SCRATCH = "index-"
# No search takes that long, so a folder that is older was left by a kill.
_SECONDS_OF_A_SEARCH = 7 * 24 * 3600


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """An empty folder below `root`, on a disk that all ranks share; gone afterwards, and so are those that kills have left.

    Every rank calls it. Raises DataError where none can be made.
    """
    folder = on_main(lambda: _new_folder(root))
    try:
        yield folder
        distributed.barrier()  # nobody reads any more; after an error nobody waits
    finally:
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(root: Path) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f"{_SCRATCH}*"):
            if time.time() - left.stat().st_mtime > _SECONDS_OF_A_SEARCH:
                shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
    except OSError as error:
        raise DataError(f"{root}: no folder can be made here ({error}). Set another miner.store.") from error


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
