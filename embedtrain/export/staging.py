"""A folder that is whole or not there: written beside its place, renamed at the end."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from embedtrain.errors import CheckpointError


@contextmanager
def staged_folder(path: Path, *, needed: int) -> Iterator[Path]:
    """`<path>.partial`, empty, to fill. When the block ends it becomes `path`; when the block fails it is removed.

    An earlier model folder at `path` is replaced in the last moment. `needed`: bytes about to be written.

    Raises CheckpointError when `path` is something else than a model folder, or the disk cannot take the bytes.
    """
    if path.exists() and not _replaceable(path):
        raise CheckpointError(
            f"{path} exists and is not a model folder (no modules.json in it): it will not be overwritten. Export to another "
            "path, or remove it first."
        )
    partial = beside(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise _full(path, needed, free)
        partial.mkdir()
        yield partial
        replace_folder(partial, path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise _full(path, needed, shutil.disk_usage(path.parent).free) from error
        raise CheckpointError(f"model folder {path} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / "modules.json").exists() or not any(path.iterdir()))


def replace_folder(source: Path, target: Path) -> Path:
    """Rename `source` to `target`; what was at `target` goes only when the new folder stands there."""
    previous = beside(target, "previous")
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    source.rename(target)
    shutil.rmtree(previous, ignore_errors=True)
    return target


def _full(path: Path, needed: int, free: int) -> CheckpointError:
    return CheckpointError(
        f"model folder {path} could not be written: the disk is full ({needed:,} bytes needed, {free:,} free). Free some "
        "space or export to another path; nothing was left behind."
    )
