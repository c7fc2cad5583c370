"""A window of ranks."""

from __future__ import annotations

from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.mining.records import Candidates


class RankRange:
    """Keeps candidates by how near they are: those of rank first to last, both included.

    Rank 1 is the nearest document that is not known to answer. A window says nothing of how alike query and candidate are, so
    that it suits a corpus of known size: "TopK shifted by N" leaves out the first N (first N + 1; NV-Retriever,
    arXiv:2407.15831), ANCE and others draw from the first 200.

    first  best rank that stays
    last   worst rank that stays; null: as deep as was searched
    """

    def __init__(self, *, first: int = 1, last: int | None = None) -> None:
        if first < 1:
            raise ConfigError(f"rank_range.first={first}: ranks count from 1.")
        if last is not None and last < first:
            raise ConfigError(f"rank_range.last={last}: expected at least first={first}, or null.")
        self.first = first
        self.last = last

    def __call__(self, candidates: Candidates) -> Tensor:
        stays = candidates.ranks >= self.first
        return stays if self.last is None else stays & (candidates.ranks <= self.last)
