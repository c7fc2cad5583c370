"""Adding vectors to a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.errors import DataError
from embedtrain.store.manifest import Numbers
from embedtrain.store.shards import remove_unfinished, write_shard

LARGEST = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max)}


class StoreWriter:
    """Adds vectors to a store that is there (`start_store`). Each rank has a writer of its own.

    path           the store
    numbers        of its vectors
    shard_texts    a shard is written when it has so many texts
    shard_seconds  or so long after the one before: what a kill can cost
    """

    def __init__(self, path: Path, numbers: Numbers, *, shard_texts: int = 65536, shard_seconds: float = 300.0) -> None:
        self.path = path
        self.numbers: Numbers = numbers
        self.shard_texts = shard_texts
        self.shard_seconds = shard_seconds
        self.written: list[str] = []  # names of this writer's shards
        self._keys: list[Ints] = []
        self._vectors: list[np.ndarray] = []
        self._since = time.monotonic()
        remove_unfinished(path)

    def add(self, keys: Sequence[int] | Ints, vectors: np.ndarray, texts: Sequence[str]) -> None:
        """`vectors` [n, E] fp32 of n texts that the store does not have. `texts` are for messages.

        Raises DataError for a vector that is not finite, or not in the store's numbers.
        """
        self._refuse_broken(vectors, texts)
        self._keys.append(np.asarray(keys, dtype=np.int64))
        self._vectors.append(vectors.astype(self.numbers))
        if sum(map(len, self._keys)) >= self.shard_texts or time.monotonic() - self._since >= self.shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Writes what has been added as one shard."""
        if any(map(len, self._keys)):
            keys, vectors = np.concatenate(self._keys), np.concatenate(self._vectors)
            self._vectors = []  # before the copy that sorting makes
            self.written.append(write_shard(self.path, keys, vectors))
        self._keys, self._vectors = [], []
        self._since = time.monotonic()

    def _refuse_broken(self, vectors: np.ndarray, texts: Sequence[str]) -> None:
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{self.path}: {_count(finite)} not finite, the first is {texts[int(finite.argmin())][:80]!r}. The model is "
                "broken, or its arithmetic needs fp32."
            )
        fits = np.abs(vectors).max(axis=1, initial=0) <= LARGEST[self.numbers]
        if not fits.all():
            raise DataError(
                f"{self.path}: {_count(fits)} not finite in {self.numbers}, the first is {texts[int(fits.argmin())][:80]!r}. "
                "Use float32 for the store's numbers."
            )


def _count(good: np.ndarray) -> str:
    return f"{int((~good).sum())} of {good.size} texts have a vector that is"
