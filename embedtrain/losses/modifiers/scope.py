"""Whose hard negatives a query meets."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile, TileModifier
from embedtrain.losses.modifiers import Turn
from embedtrain.types import EmbeddingBatch


class HardNegativeScope:
    """Takes hard negatives out of the documents that a query is contrasted with.

    of: own   its own stay, those of other queries go: their positives are the in-batch negatives (SimCSE-like setups
              keep all; GTE, arXiv:2308.03281, keeps its own)
        none  all go: the in-batch half of F2LLM (arXiv:2510.02294), which has a term of its own for hard negatives
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
