"""Whose hard negatives a query meets."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile, TileModifier
from embedtrain.losses.modifiers import Turn
from embedtrain.types import EmbeddingBatch


class HardNegativeScope:
    """Says whose hard negatives a query meets; without it, those of all queries.

    EmbeddingGemma (arXiv:2509.20354, section 2.2) has a query's own beside the positives of others. F2LLM
    (arXiv:2510.02294) has no hard negative in its in-batch half, and a cross-entropy of its own for them.
    Cost: none.

    of  own: its own stay, those of other queries go; none: all go
    """

    turn: ClassVar[Turn] = "filter"

    def __init__(self, *, of: Literal["own", "none"]):
        if of not in ("own", "none"):
            raise ConfigError(f"loss.modifiers.scope.of: expected own or none, got {of!r}.")
        self.of = of

    def bind(self, batch: EmbeddingBatch) -> TileModifier:
        hard = ~batch.relation.is_positive

        def take_out(tile: Tile) -> int:
            if tile.term[2] == "d":
                columns = hard if tile.columns is None else hard[tile.columns.to(hard.device)]
                flat = tile.logits.view(-1)
                own = flat[tile.hard].clone()
                tile.logits.masked_fill_(columns[None], -math.inf)
                if self.of == "own":
                    flat[tile.hard] = own
            return 0  # asked for by the setting, and no suspicion about the pair

        return take_out
