"""How an exact search cuts its work so that it stays within a memory cap.

    result     [Q', k]        the answers of this rank's queries, held until the end
    group      G queries      their vectors, the best so far, and the pairs that are scored again: for one pass over the documents
    chunk      C documents    read at a time
    work       whatever is in hand for a moment, never two of them at once:
               a block of B queries with a tile of T documents, merging the finds of all ranks for m queries, scoring p pairs

Each is counted at its worst, in bytes, temporaries of the library calls included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embedtrain.errors import ConfigError
from embedtrain.evaluation.search import DOCUMENT_TILE, DOCUMENT_TILE_GPU, QUERY_BLOCK
from embedtrain.mining.search.pairs import PAIRS_AT_ONCE, bytes_per_pair

CHUNK = 16384
QUERY_BLOCK_GPU = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of an exact search."""

    group: int  # queries of one pass over the documents
    chunk: int  # documents read at a time
    block: int  # queries of a block of similarities
    tile: int  # documents of it
    merged: int  # queries whose finds are exchanged at a time
    pairs: int  # pairs scored again at a time


@dataclass(frozen=True, slots=True)
class Costs:
    """Bytes of each part, for vectors of `dim` numbers of which `kept` documents are kept per query on each of `ranks`."""

    dim: int
    kept: int
    ranks: int

    @property
    def query(self) -> int:
        """In a group: its vector as it is read (with a copy) and in fp64, 2 x kept scores and numbers, kept of them as the
        pass's result, and 40 for each pair that is scored again."""
        return 16 * self.dim + (24 + 12 + 40) * self.kept + 64

    @property
    def document(self) -> int:
        """In a chunk: as it is read (with a copy), and on the device."""
        return 12 * self.dim + 8

    def block(self, queries: int, documents: int) -> int:
        """Similarities in fp64 and fp32, a mask, and the places of those that pass, in case all do; sorting the rows."""
        return 80 * queries * documents + 80 * queries * self.kept + 8 * self.dim * (queries + documents)

    @property
    def merged(self) -> int:
        """A query's finds: sent, filled up, from every rank, in one piece, and sorted."""
        return (24 + 64 * self.ranks) * self.kept

    @property
    def pair(self) -> int:
        return bytes_per_pair(self.dim)

    @property
    def least_work(self) -> int:
        return max(self.block(1, 1), self.merged, self.pair)

    def least(self) -> int:
        """With what `plan` finds a way, besides the result."""
        return max(4 * self.least_work, 4 * self.document, 2 * self.query)


def plan(
    num_queries: int, num_documents: int, num_own: int, k: int, costs: Costs, max_memory: int, device: torch.device
) -> Plan:
    """The sizes for `num_queries` against this rank's `num_documents`, where `num_own` of the answers stay on this rank.

    Half of what the result leaves goes to the group, since every group is a pass over the documents; a quarter each to chunk
    and work, or less where less is enough. Raises ConfigError where the cap cannot hold one query and one document.
    """
    result = (16 * k + 32) * num_own
    rest = max_memory - result
    if rest < costs.least():
        raise ConfigError(
            f"miner.max_memory_gb: an exact search of {num_queries:,} queries, {num_own:,} of them on this rank, for "
            f"{k:,} documents each, by vectors of {costs.dim} dimensions, holds at least {result + costs.least():,} bytes, "
            f"{result:,} of them its answers; the cap is {max_memory:,}. Raise miner.max_memory_gb to at least "
            f"{_gib(result + costs.least())}, lower miner.depth, or use more ranks."
        )
    on_cpu = device.type == "cpu"
    block, tile = QUERY_BLOCK if on_cpu else QUERY_BLOCK_GPU, DOCUMENT_TILE if on_cpu else DOCUMENT_TILE_GPU
    while costs.block(block, tile) > rest // 4:
        block, tile = (block, tile // 2) if tile > block else (max(1, block // 2), tile)
    chunk = max(1, min(CHUNK if on_cpu else max(CHUNK, tile), num_documents, rest // 4 // costs.document))
    merged = max(1, min(4096, rest // 4 // costs.merged))
    pairs = max(1, min(PAIRS_AT_ONCE, rest // 4 // costs.pair))
    work = max(costs.block(block, tile), costs.merged * merged, costs.pair * pairs)
    most = (rest - work - chunk * costs.document) // costs.query
    groups = -(-num_queries // most)
    return Plan(-(-num_queries // max(1, groups)), chunk, block, tile, merged, pairs)


def _gib(size: int) -> str:
    return f"{size / 2**30 + 5e-5:.4f}"
