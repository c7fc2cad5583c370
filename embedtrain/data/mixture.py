"""Several sources and how much of each an epoch holds.

    weight of a source   its own, or its rows ** exponent: 1 is proportional, 0 equal, between them flatter
    share                weight / sum of the weights: its part of the queries of an epoch

An epoch has as many steps as all rows together make. With `one_source` batches a global batch, across all ranks, comes from
one source, so that its in-batch negatives are of its kind (with `sources_per_batch` of several, an equal part of each); with
`blended` every batch is drawn from all. A source that is smaller than its share is gone through again in a new order; one that
is larger goes on in the next epoch where it stopped, so that no row is starved. With default weights and exponent 1, each row
comes once in each epoch.

A step's loss is the mean over its queries, whatever its batch size. So where sources have batch sizes of their own, a query of
a source with smaller batches weighs more: steps count alike, queries do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import numpy as np
import xxhash

from embedtrain.data.draws import Ints
from embedtrain.data.index import SourceIndex
from embedtrain.data.sources.base import Source
from embedtrain.errors import ConfigError

Batching = Literal["one_source", "blended"]


class Mixture:
    """Named sources with their shares.

    sources    name -> source
    batching   "one_source" or "blended"
    exponent   flattens the sizes, for sources without a weight of their own
    """

    def __init__(
        self, *, sources: Mapping[str, Source], batching: Batching = "one_source", exponent: float = 1.0
    ) -> None:
        if not sources:
            raise ConfigError("data.sources is empty. Name at least one source, for example data=pairs data.path=FILE.")
        if batching not in ("one_source", "blended"):
            raise ConfigError(f"data.batching={batching!r}: expected one_source or blended.")
        if exponent < 0:
            raise ConfigError(f"data.exponent={exponent}: expected 0 (equal shares) to 1 (by size), or more.")
        weighted = [name for name, source in sources.items() if source.weight is not None]
        if weighted and len(weighted) < len(sources):
            others = [name for name in sources if name not in weighted]
            raise ConfigError(
                f"data.sources: {', '.join(weighted)} have a weight and {', '.join(others)} have none. "
                "Weights are relative to each other: set all of them, or none and data.exponent."
            )
        for name, source in sources.items():
            _refuse_blended(name, source, batching)
            source.refuse_empty()
        self.sources = dict(sources)
        self.names = tuple(sources)
        self.batching = batching
        self.sizes: Ints = np.array([len(source) for source in sources.values()], dtype=np.int64)
        self.by_size = not weighted and exponent == 1.0
        self.weights = np.array(
            [
                float(n) ** exponent if s.weight is None else s.weight
                for s, n in zip(sources.values(), self.sizes, strict=True)
            ]
        )

    @cached_property
    def indexes(self) -> tuple[SourceIndex, ...]:
        """Of each source. Reads every row, which the sizes of an epoch do not ask for."""
        return tuple(source.index for source in self.sources.values())

    @property
    def shares(self) -> np.ndarray:
        return self.weights / self.weights.sum()

    @property
    def fingerprint(self) -> str:
        """Hash of all rows and of how they are mixed: what a run can be resumed on."""
        digest = xxhash.xxh3_128()
        for name, index, weight in zip(self.names, self.indexes, self.weights, strict=True):
            digest.update(repr((name, index.fingerprint, float(weight))).encode())
        digest.update(self.batching.encode())
        return digest.hexdigest()

    def allot(self, natural: Ints, queries: Ints) -> Ints:
        """The units (batches or rows) of an epoch among the sources, by share, at least one for each.

        `natural` [sources] are the units of each when every row comes once: their sum is allotted, and with default weights
        they are the answer. `queries` [sources]: of one unit of each source.
        """
        if self.by_size:
            return natural
        total = int(natural.sum())
        per_unit = self.weights / queries
        exact = np.maximum(per_unit / per_unit.sum() * total, 1.0)
        units = np.floor(exact).astype(np.int64)
        rest = max(total - int(units.sum()), 0)
        units[np.argsort(units - exact, kind="stable")[:rest]] += 1  # largest remainders first
        return units


def _refuse_blended(name: str, source: Source, batching: str) -> None:
    for key in ("batch_size", "texts_per_label"):
        if batching == "blended" and getattr(source, key) is not None:
            raise ConfigError(
                f"data.sources.{name}.{key}={getattr(source, key)}: with data.batching=blended a batch is of all sources. Set "
                "data.batching=one_source, or this to null."
            )
