"""Hardness weighting: harder negatives count more."""

from __future__ import annotations

from typing import ClassVar, Literal

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile
from embedtrain.losses.modifiers import Turn
from embedtrain.types import EmbeddingBatch


class HardnessWeight:
    """Harder negatives count more: each by a weight that grows with its similarity.

        e^(s / t)  becomes  e^(alpha s) e^(s / t),  without gradient through the weight

    LLaVE (arXiv:2503.04812): all negatives, alpha 9; its code is `terms: [q2d, d2q], partition: separate`, its paper q2d
    alone. EmbeddingGemma (arXiv:2509.20354): hard negatives, alpha 5, beside a HardNegativeScope `of: own`.
    Cost: none.

    alpha      0: all alike
    negatives  all: every negative of every term; hard: the query's own hard negatives only
    """

    turn: ClassVar[Turn] = "weigh"

    def __init__(self, *, alpha: float, negatives: Literal["all", "hard"] = "all"):
        if alpha < 0:
            raise ConfigError(f"loss.modifiers.hardness.alpha: {alpha} would favour easy negatives. Use a number >= 0.")
        if negatives not in ("all", "hard"):
            raise ConfigError(f"loss.modifiers.hardness.negatives: expected all or hard, got {negatives!r}.")
        self.alpha = alpha
        self.negatives = negatives

    def bind(self, batch: EmbeddingBatch) -> HardnessWeight:
        return self

    def __call__(self, tile: Tile) -> int:
        factor = 1 + self.alpha / tile.scale  # scale * s + alpha * s = scale * s * factor
        if self.negatives == "all":
            tile.logits.mul_(factor)
        else:
            flat = tile.logits.view(-1)
            flat[tile.hard] = flat[tile.hard] * factor
        return 0
