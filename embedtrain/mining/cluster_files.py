"""The clusters of a run's rows on disk: found once, and read by every start after the first checkpoint.

runs/x/neighbourhoods/<source>.npy      the cluster of each row, int32 [R]
runs/x/neighbourhoods/<source>.json     of which rows, by which model, with which settings; and the hash of the other file
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from embedtrain.data.draws import Ints
from embedtrain.data.writers.files import file_name
from embedtrain.errors import CheckpointError, TrainingError


def folder_of(run_dir: Path) -> Path:
    return run_dir / "neighbourhoods"


def has_checkpoint(run_dir: Path) -> bool:
    return any(path.suffix != ".partial" for path in (run_dir / "checkpoints").glob("step_*"))


def write(folder: Path, name: str, clusters: Ints, manifest: Mapping[str, Any]) -> None:
    """Of the source `name`. Raises CheckpointError where there is no room."""
    array, said = _paths(folder, name)
    content = io.BytesIO()
    np.save(content, clusters.astype("<i4"))
    known = {**manifest, "xxh3_128": xxhash.xxh3_128_hexdigest(content.getvalue())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said.unlink(missing_ok=True)
        _put(array, content.getvalue())
        _put(said, (json.dumps(known, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(
            f"{array} could not be written: {error}. Make room and start the same command again."
        ) from error


def read_equal(folder: Path, name: str, manifest: Mapping[str, Any]) -> Ints | None:
    """What an earlier start wrote that ended before its first checkpoint; None where there is none, or with another manifest."""
    try:
        clusters, known = _read(folder, name)
    except CheckpointError:
        return None
    return clusters if known == json.loads(json.dumps(manifest)) else None


def read_begun(folder: Path, name: str, rows: str) -> Ints:
    """Those of a run that goes on. `rows`: the fingerprint of the rows as they are now.

    Raises CheckpointError where they are gone or are not as they were written, TrainingError where they are of other rows.
    """
    try:
        clusters, manifest = _read(folder, name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} The batches of this run are neighbourhoods, and without the clusters that it began with it cannot go "
            "on exactly. Restore the files from a copy, or start a new run with another run.name."
        ) from None
    if manifest["rows"] != rows:
        raise TrainingError(
            f"{_paths(folder, name)[0]}: the clusters are not of the rows that data.sources.{name} has now "
            f"({manifest['rows']} then, {rows} now), so the batches would not be the same. Restore the data, or start a new "
            "run with another run.name."
        )
    return clusters


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Of the clusters, and of what is said of them."""
    return folder / f"{file_name(name)}.npy", folder / f"{file_name(name)}.json"


def _read(folder: Path, name: str) -> tuple[Ints, dict[str, Any]]:
    """The clusters and what is said of them. Raises CheckpointError where they are not as they were written."""
    array, said = _paths(folder, name)
    for path in (array, said):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
    content = array.read_bytes()
    try:
        manifest = json.loads(said.read_text(encoding="utf-8"))
    except ValueError:
        raise CheckpointError(f"{said} is damaged.") from None
    if xxhash.xxh3_128_hexdigest(content) != manifest.pop("xxh3_128", None):
        raise CheckpointError(f"{array} is not as it was written.")
    return np.load(io.BytesIO(content), allow_pickle=False).astype(np.int64), manifest


def _put(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
