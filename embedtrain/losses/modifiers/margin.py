"""A filter of likely false negatives by the model's own similarities."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile
from embedtrain.losses.modifiers import Turn
from embedtrain.types import EmbeddingBatch


class FalseNegativeFilter:
    """Takes out negatives more similar to the row than its positive by a margin: likely answers that nobody marked.

    A negative goes when its similarity exceeds `positive + absolute` (Qwen3, arXiv:2506.05176, and UniME,
    arXiv:2504.17432: 0.1) or `positive + relative * |positive|` (relative -0.05 is NV-Retriever's 95 %,
    arXiv:2407.15831). A query with several positives is compared with its best. Curated hard negatives stay unless
    `curated` is true.
    """

    turn: ClassVar[Turn] = "filter"

    def __init__(self, *, absolute: float | None = None, relative: float | None = None, curated: bool = False):
        if (absolute is None) == (relative is None):
            raise ConfigError(
                "loss.modifiers.false_negatives: give exactly one of absolute and relative, "
                f"got absolute={absolute}, relative={relative}."
            )
        self.absolute = absolute
        self.relative = relative
        self.curated = curated

    def bind(self, batch: EmbeddingBatch) -> FalseNegativeFilter:
        return self

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
