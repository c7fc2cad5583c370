"""What one rank does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from embedtrain import distributed
from embedtrain.errors import EmbedtrainError

T = TypeVar("T")


def on_main(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank. An error that its user can mend is raised on every rank, and nobody waits for it."""
    made: T | EmbedtrainError | None = None
    if distributed.is_main():
        try:
            made = make()
        except EmbedtrainError as error:
            made = error
    made = distributed.broadcast_object(made)
    if isinstance(made, EmbedtrainError):
        raise made
    return made  # type: ignore[return-value]
