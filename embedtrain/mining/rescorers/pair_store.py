"""Scores of (query, document) pairs on disk, by what the model was shown: a store (`embedtrain.store`) of one number per key.

A killed run has written what it scored up to some minutes before, and the next one goes on from there. Scores belong to a model
and to how it was asked: others lie in a folder of their own below the same root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.store.manifest import Manifest, start_store, store_folder
from embedtrain.store.ranks import on_main
from embedtrain.store.reader import VectorStore, shard_names
from embedtrain.store.writer import StoreWriter
from embedtrain.types import text_id


def pair_keys(queries: Sequence[int], documents: Sequence[int]) -> Ints:
    """[n] of pairs of text ids."""
    pairs = zip(queries, documents, strict=True)
    return np.fromiter((text_id(f"pair\x00{query}\x00{document}") for query, document in pairs), dtype=np.int64)


class PairStore:
    """The scores of one model, below `root`. Every rank opens it, and adds its own.

    identity        all that a score depends on, besides the texts; read on rank 0
    shard_pairs,
    shard_seconds   a shard is written after so many pairs, or so much time: what a kill can cost
    """

    def __init__(
        self, root: Path, identity: Mapping[str, Any], *, shard_pairs: int = 65536, shard_seconds: float = 300.0
    ) -> None:
        def start() -> tuple[Path, list[str]]:
            manifest = Manifest(identity=identity, dim=1, numbers="float32")
            folder = store_folder(root, manifest)
            start_store(folder, manifest)
            return folder, shard_names(folder)

        self.folder, names = on_main(start)
        self._store = VectorStore(self.folder, command="the mining", shards=names)
        self._writer = StoreWriter(self.folder, "float32", shard_texts=shard_pairs, shard_seconds=shard_seconds)

    def find(self, keys: Ints) -> np.ndarray:
        """[n] fp32, NaN where a pair has not been scored."""
        scores, found = self._store.find(keys)
        return np.where(found, scores[:, 0], np.float32(np.nan))

    def add(self, keys: Ints, scores: np.ndarray, texts: Sequence[str]) -> None:
        """`texts`: for messages."""
        self._writer.add(keys, scores[:, None], texts)

    def flush(self) -> None:
        """Writes what has been added."""
        self._writer.flush()
