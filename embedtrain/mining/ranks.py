"""How ranks share mining: each has some queries for its own."""

from __future__ import annotations

from embedtrain import distributed
from embedtrain.data.sampling import part


def own_queries(count: int, rank: int | None = None) -> range:
    """Which of `count` queries are this rank's, or those of rank `rank`: contiguous parts, equal to within one."""
    own = part(count, distributed.rank() if rank is None else rank, distributed.world_size())
    return range(own.start, own.stop)
