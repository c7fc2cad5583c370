"""Tile modifiers: what a softmax loss does to its negatives before they enter the denominator.

A modifier sees a block of detached logits and the rows' positives, and changes the logits in place (`contrast.Tile`).
Filters come before weights, since a filter reads logits as similarities.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile


class HardnessWeight:
    """Weighs each negative by e^(alpha * similarity), without gradient through the weight: harder ones count more.

    `negatives: all` weighs every negative of every term: LLaVE (arXiv:2503.04812), alpha 9; its code is `terms: [q2d,
    d2q], partition: separate`, its paper q2d alone. `negatives: hard` weighs the query's own hard negatives only:
    EmbeddingGemma (arXiv:2509.20354), alpha 5.
    """

    def __init__(self, *, alpha: float, negatives: Literal["all", "hard"] = "all"):
        if alpha < 0:
            raise ConfigError(f"loss.hardness.alpha: {alpha} would favour easy negatives. Use a number >= 0.")
        if negatives not in ("all", "hard"):
            raise ConfigError(f"loss.hardness.negatives: expected all or hard, got {negatives!r}.")
        self.alpha = alpha
        self.negatives = negatives

    def __call__(self, tile: Tile) -> int:
        factor = 1 + self.alpha / tile.scale  # scale * s + alpha * s = scale * s * factor
        if self.negatives == "all":
            tile.logits.mul_(factor)
        else:
            flat = tile.logits.view(-1)
            flat[tile.hard] = flat[tile.hard] * factor
        return 0


class FalseNegativeFilter:
    """Takes out negatives more similar to the row than its positive by a margin: likely answers that nobody marked.

    A negative goes when its similarity exceeds `positive + absolute` (Qwen3, arXiv:2506.05176: 0.1) or
    `positive + relative * |positive|` (relative -0.05 is NV-Retriever's 95 %, arXiv:2407.15831). A query with several
    positives is compared with its best. Curated hard negatives stay unless `curated` is true.
    """

    def __init__(self, *, absolute: float | None = None, relative: float | None = None, curated: bool = False):
        if (absolute is None) == (relative is None):
            raise ConfigError(
                "loss.false_negative_margin: give exactly one of absolute and relative, "
                f"got absolute={absolute}, relative={relative}."
            )
        self.absolute = absolute
        self.relative = relative
        self.curated = curated

    def __call__(self, tile: Tile) -> Tensor:
        if self.absolute is not None:
            limit = tile.positive + self.absolute * tile.scale
        else:
            assert self.relative is not None
            limit = tile.positive + self.relative * tile.positive.abs()
        suspect = tile.logits > limit[:, None]
        if not self.curated:
            suspect.view(-1)[tile.hard] = False
        tile.logits.masked_fill_(suspect, -math.inf)
        return suspect.sum()
