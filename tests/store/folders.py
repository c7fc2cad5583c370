"""Small stores whose vectors say their keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedtrain.store.manifest import Manifest, start_store
from embedtrain.store.writer import StoreWriter

IDENTITY = {"weights": "abc", "prompts": {"query": "q: ", "document": ""}}


def manifest(**changes) -> Manifest:
    return Manifest(**{"identity": IDENTITY, "dim": 3, "numbers": "float32", **changes})


def vectors(keys) -> np.ndarray:
    return np.array([[key + 1, key / 2, -key] for key in keys], dtype=np.float32)


def texts(keys) -> list[str]:
    return [f"text {key}" for key in keys]


def started(path: Path, numbers: str = "float32", **options) -> StoreWriter:
    start_store(path, manifest(numbers=numbers))
    return StoreWriter(path, numbers, **options)


def filled(path: Path, *shards: list[int]) -> Path:
    """A store of so many shards with these keys."""
    writer = started(path)
    for keys in shards:
        writer.add(keys, vectors(keys), texts(keys))
        writer.flush()
    return path
