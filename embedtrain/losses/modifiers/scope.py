"""Whose hard negatives a query meets."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile, TileModifier
from embedtrain.losses.modifiers import Turn
from embedtrain.types import NO_OWNER, EmbeddingBatch


class HardNegativeScope:
    """Says whose hard negatives a query meets; without it, those of all queries.

    EmbeddingGemma (arXiv:2509.20354, section 2.2) has a query's own beside the positives of others. F2LLM
    (arXiv:2510.02294) has no hard negative in its in-batch half, and a cross-entropy of its own for them. InSeNT
    (arXiv:2505.24782) meets those of others in its in-batch half, and its own in the other.
    Cost: none.

    of  own: its own stay, those of other queries go; others: the reverse; none: all go
    """

    turn: ClassVar[Turn] = "filter"

    def __init__(self, *, of: Literal["own", "others", "none"]):
        if of not in ("own", "others", "none"):
            raise ConfigError(f"loss.modifiers.scope.of: expected own, others or none, got {of!r}.")
        self.of = of

    def bind(self, batch: EmbeddingBatch) -> TileModifier:
        hard = ~batch.relation.is_positive & (batch.relation.owner != NO_OWNER)  # a memory's documents are nobody's

        def take_out(tile: Tile) -> int:
            if tile.term[2] == "d":
                flat = tile.logits.view(-1)
                own = flat[tile.hard].clone()
                if self.of != "others":
                    columns = hard if tile.columns is None else hard[tile.columns.to(hard.device)]
                    tile.logits.masked_fill_(columns[None], -math.inf)
                flat[tile.hard] = own if self.of == "own" else -math.inf
            return 0  # asked for by the setting, and no suspicion about the pair

        return take_out
