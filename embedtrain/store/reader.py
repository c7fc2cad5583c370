"""Where a text's vector is, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.store.manifest import read_manifest
from embedtrain.store.shards import PATTERN, Shard, open_shard

NOWHERE = -1


class VectorStore:
    """The vectors of a store, for reading. Travels to other processes as its path; maps are opened where they are used.

    No index is held: each shard is a sorted array in the page cache, shared by all processes of the machine.

    command   what writes missing shards again, for messages
    shards    file names; None: all that are there at first use. Ranks that must see the same shards name them
    """

    def __init__(self, path: Path, *, command: str = "the same command", shards: Sequence[str] | None = None) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.command = command
        self._names = shards
        self._shards: list[Shard] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": None}

    def __len__(self) -> int:
        return sum(shard.keys.size for shard in self.shards)

    @property
    def shards(self) -> list[Shard]:
        """Raises DataError naming one that is cut short or does not fit."""
        if self._shards is None:
            names = self._names if self._names is not None else shard_names(self.path)
            self._shards = [self._open(self.path / name) for name in names]
        return self._shards

    def locate(self, keys: Sequence[int] | Ints) -> tuple[Ints, Ints]:
        """Of each key the number of its shard, NOWHERE where no shard has it, and its place in there. [N], [N].

        A key that several shards hold is that of the first. Cost: N log N, and for each shard the smaller side's binary
        searches in the larger.
        """
        wanted, back = np.unique(np.asarray(keys, dtype=np.int64), return_inverse=True)
        shard, place = np.full(wanted.size, NOWHERE, dtype=np.int64), np.zeros(wanted.size, dtype=np.int64)
        for number in reversed(range(len(self.shards))):  # so that the first one has the last word
            hit, at = _common(wanted, self.shards[number].keys)
            shard[hit], place[hit] = number, at
        return shard[back], place[back]

    def has(self, keys: Sequence[int] | Ints) -> np.ndarray:
        """Whether each key is in the store, [N] bool. Reads no vector."""
        return self.locate(keys)[0] != NOWHERE

    def find(self, keys: Sequence[int] | Ints) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [N, E] fp32, and whether each key is in the store [N]; where it is not, its vector is 0."""
        shard, place = self.locate(keys)
        return self.read(shard, place), shard != NOWHERE

    def read(self, shard: Ints, place: Ints) -> np.ndarray:
        """Vectors [N, E] fp32 of what was located; 0 for NOWHERE."""
        vectors = np.zeros((shard.size, self.manifest.dim), dtype=np.float32)
        # By shard and place: one way through each file.
        order = np.lexsort((place, shard))
        bounds = np.searchsorted(shard[order], np.arange(len(self.shards) + 1))
        for number in np.unique(shard[shard != NOWHERE]).tolist():
            rows = order[bounds[number] : bounds[number + 1]]
            vectors[rows] = self.shards[number].vectors[place[rows]]
        return vectors

    def count_zeros(self, shard: Ints, place: Ints) -> int:
        """How many of the N located vectors are 0. Reads none of them."""
        return sum(
            int(np.isin(place[shard == number], self.shards[number].zeros).sum())
            for number in range(len(self.shards))
            if self.shards[number].zeros.size
        )

    def _open(self, path: Path) -> Shard:
        remedy = f"Delete this file and run {self.command} again: it writes what is missing."
        return open_shard(path, self.manifest.dim, self.manifest.numbers, remedy)


def shard_names(store: Path) -> list[str]:
    """The shards that are there, sorted."""
    return sorted(path.name for path in store.glob(PATTERN))


def _common(wanted: Ints, own: Ints) -> tuple[Ints, Ints]:
    """Places in `wanted` and in `own` of the keys that both have. Both ascend, `wanted` without repetitions."""
    if own.size < wanted.size:
        at = np.minimum(np.searchsorted(wanted, own), wanted.size - 1)
        there = np.flatnonzero(wanted[at] == own)
        return at[there], there
    if not own.size:
        return own, own
    at = np.minimum(np.searchsorted(own, wanted), own.size - 1)
    there = np.flatnonzero(own[at] == wanted)
    return there, at[there]
