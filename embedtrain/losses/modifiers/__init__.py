"""Tile modifiers: what a softmax loss does to its negatives before they enter the denominator. One per file.

A modifier is a component of `loss.modifiers`. `bind(batch)` gives the function that sees a block of detached logits and
the rows' positives, and changes the logits in place (`contrast.Tile`). Filters come first, since they read logits as
similarities; then what picks among those that are left; then weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Protocol

from embedtrain.losses.contrast import TileModifier
from embedtrain.types import EmbeddingBatch

Turn = Literal["filter", "pick", "weigh"]
TURNS: tuple[Turn, ...] = ("filter", "pick", "weigh")


class Modifier(Protocol):
    turn: ClassVar[Turn]

    def bind(self, batch: EmbeddingBatch) -> TileModifier: ...


def bound(modifiers: Iterable[Modifier], batch: EmbeddingBatch) -> list[TileModifier]:
    """The modifiers of one batch, in the order in which they act."""
    return [modifier.bind(batch) for turn in TURNS for modifier in modifiers if modifier.turn == turn]
