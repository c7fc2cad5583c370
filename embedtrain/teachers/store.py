"""Vectors on disk by the identity of their texts: written in shards, found by binary search, read through memory maps.

    store/manifest.json                  what the vectors are: the teacher's identity, dimensions, numbers
    store/shard-000-00000.keys.npy       [n] int64, ascending: `RoleTexts.keys`
    store/shard-000-00000.vectors.npy    [n, E'] float16 or float32, in the order of the keys

A shard counts once its keys are there. Both files are written under another name and then renamed, vectors first, so that a
kill at any moment leaves whole shards and at most some files that nothing reads. The first number is that of the rank
that wrote: ranks never touch each other's files.

Readers hold no index: each shard is a sorted array in the page cache, shared by all processes of the machine. A lookup is a
binary search per shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embedtrain.errors import ConfigError, DataError

VERSION = 1
Numbers = Literal["float16", "float32"]
_FINITE = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max)}


@dataclass(frozen=True)
class Manifest:
    """What a store's vectors are."""

    identity: Mapping[str, Any]  # of the teacher: `OnlineTeacher.identity`
    dim: int
    numbers: Numbers
    version: int = VERSION

    def refuse_other(self, other: Manifest, store: Path) -> None:
        """Raises DataError naming what differs, where `other` is what the teacher of now would write."""
        mine, theirs = _flat(self), _flat(other)
        different = [
            f"{key} {mine.get(key)!r} / {theirs.get(key)!r}"
            for key in mine | theirs
            if mine.get(key) != theirs.get(key)
        ]
        if different:
            raise DataError(
                f"{store}: the vectors in this store are not those of this teacher (store / teacher): {'; '.join(different)}. "
                "Name the teacher that filled the store, or another folder for the store."
            )


def _flat(manifest: Manifest) -> dict[str, Any]:
    return {**manifest.identity, "dim": manifest.dim, "numbers": manifest.numbers, "version": manifest.version}


def read_manifest(store: Path) -> Manifest:
    """Raises ConfigError where there is no store, DataError where its manifest cannot be read."""
    path = store / "manifest.json"
    if not path.is_file():
        raise ConfigError(f"{store.absolute()} is no store of teacher vectors yet (it has no manifest.json).")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**known)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a manifest ({error}). Delete the store and fill it again.") from error
    if manifest.version != VERSION:
        raise DataError(f"{path}: version {manifest.version}; this release reads {VERSION}. Fill the store again.")
    return manifest


class VectorStore:
    """The vectors of a store, for reading. Travels to other processes as its path; maps are opened where they are used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self._shards: list[tuple[np.ndarray, np.ndarray]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": None}

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self.shards)

    @property
    def shards(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(keys, vectors) of each shard. Raises DataError naming one that is cut short or does not fit."""
        if self._shards is None:
            self._shards = [self._open(path) for path in sorted(self.path.glob("shard-*.keys.npy"))]
        return self._shards

    def find(self, keys: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [N, E'] fp32, and whether each key is in the store [N]; where it is not, its vector is 0."""
        wanted = np.asarray(keys, dtype=np.int64)
        found = np.zeros(wanted.size, dtype=np.bool_)
        vectors = np.zeros((wanted.size, self.manifest.dim), dtype=np.float32)
        for own, values in self.shards:
            place = np.searchsorted(own, wanted)
            hit = ~found & (place < own.size)
            hit[hit] = own[place[hit]] == wanted[hit]
            vectors[hit] = values[place[hit]]
            found |= hit
        return vectors, found

    def has(self, keys: Sequence[int]) -> np.ndarray:
        """Whether each key is in the store, [N]. Reads no vector."""
        wanted = np.asarray(keys, dtype=np.int64)
        found = np.zeros(wanted.size, dtype=np.bool_)
        for own, _ in self.shards:
            place = np.minimum(np.searchsorted(own, wanted), own.size - 1)
            found |= own[place] == wanted
        return found

    def _open(self, keys_file: Path) -> tuple[np.ndarray, np.ndarray]:
        vectors_file = keys_file.with_name(keys_file.name.replace(".keys.", ".vectors."))
        keys, vectors = _map(keys_file), _map(vectors_file)
        expected = (keys.size, self.manifest.dim)
        if (
            keys.dtype != np.int64
            or keys.ndim != 1
            or vectors.shape != expected
            or vectors.dtype != self.manifest.numbers
        ):
            raise DataError(
                f"{vectors_file}: expected {expected} of {self.manifest.numbers}, got {vectors.shape} of {vectors.dtype}. "
                f"{_remedy(vectors_file)}"
            )
        return keys, vectors


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cut short or not a shard ({error}). {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    shard = path.name.partition(".")[0]
    return f"Delete {path.parent / shard}.* and run `embedtrain teach` again: it writes what is missing."


@dataclass
class StoreWriter:
    """Adds vectors to a store, shard by shard. Each rank has one of its own."""

    path: Path
    manifest: Manifest
    rank: int = 0
    shard_texts: int = 65536  # texts of a full shard
    _keys: list[np.ndarray] = field(default_factory=list)
    _vectors: list[np.ndarray] = field(default_factory=list)

    def start(self) -> None:
        """Makes the store, or takes up one of the same teacher (DataError otherwise), and removes what a kill left of us."""
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / "manifest.json").is_file():
            read_manifest(self.path).refuse_other(self.manifest, self.path)
        elif self.rank == 0:
            text = json.dumps({**self.manifest.__dict__}, indent=2)
            _put(self.path / "manifest.json", lambda file: file.write(text.encode()))
        for left in self.path.glob(f"shard-{self.rank:03d}-*.unfinished"):
            left.unlink()

    def add(self, keys: Sequence[int], vectors: np.ndarray) -> None:
        """`vectors` [n, E'] fp32 of texts that the store does not have. Raises DataError for one that is not finite."""
        if not np.isfinite(vectors).all() or np.abs(vectors).max(initial=0) > _FINITE[self.manifest.numbers]:
            raise DataError(
                f"{self.path}: a vector is not finite in {self.manifest.numbers}. The teacher is broken, or needs fp32."
            )
        self._keys.append(np.asarray(keys, dtype=np.int64))
        self._vectors.append(vectors.astype(self.manifest.numbers))
        if sum(map(len, self._keys)) >= self.shard_texts:
            self.flush()

    def flush(self) -> None:
        """Writes what has been added as one shard."""
        if not self._keys:
            return
        keys, vectors = np.concatenate(self._keys), np.concatenate(self._vectors)
        order = np.argsort(keys, kind="stable")
        name = f"shard-{self.rank:03d}-{self._next_number():05d}"
        _put(self.path / f"{name}.vectors.npy", lambda file: np.save(file, vectors[order]))
        _put(self.path / f"{name}.keys.npy", lambda file: np.save(file, keys[order]))
        self._keys, self._vectors = [], []

    def _next_number(self) -> int:
        taken = [int(path.name.split("-")[2][:5]) for path in self.path.glob(f"shard-{self.rank:03d}-*.keys.npy")]
        return max(taken, default=-1) + 1


def _put(path: Path, write: Any) -> None:
    """A file that is there in full or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
