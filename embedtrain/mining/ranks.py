"""How ranks share mining: each has some queries for its own, and one of them writes what all read."""

from __future__ import annotations

from collections.abc import Callable

from embedtrain import distributed
from embedtrain.data.sampling import part
from embedtrain.errors import EmbedtrainError, TrainingError


def own_queries(count: int, rank: int | None = None) -> range:
    """Which of `count` queries are this rank's, or those of rank `rank`: contiguous parts, equal to within one."""
    own = part(count, distributed.rank() if rank is None else rank, distributed.world_size())
    return range(own.start, own.stop)


def on_main(work: Callable[[], object]) -> None:
    """Runs `work` on rank 0 while the others wait for it. What it raises there is raised on all: nobody waits for ever."""
    failure: Exception | None = None
    if distributed.is_main():
        try:
            work()
        except Exception as error:
            failure = error
    told: EmbedtrainError | None = distributed.broadcast_object(_for_all(failure))
    if failure is not None:
        raise failure
    if told is not None:
        raise told


def _for_all(failure: Exception | None) -> EmbedtrainError | None:
    if failure is None or isinstance(failure, EmbedtrainError):
        return failure
    return TrainingError(f"rank 0 failed: {type(failure).__name__}: {failure}")
