"""Only the hardest negatives of a row."""

from __future__ import annotations

import math
from typing import ClassVar

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile
from embedtrain.losses.modifiers import Turn
from embedtrain.types import EmbeddingBatch


class HardestOnly:
    """Keeps the k most similar negatives of each row and term, after filters; equals of the k-th stay as well.

    UniME (arXiv:2504.17432, section 3.3): k 8, after a filter of false negatives with margin 0.1.
    Cost: a selection of k per row.

    k  negatives that stay
    """

    turn: ClassVar[Turn] = "pick"

    def __init__(self, *, k: int):
        if k < 1:
            raise ConfigError(f"loss.modifiers.hardest.k: expected at least 1 negative, got {k}.")
        self.k = k

    def bind(self, batch: EmbeddingBatch) -> HardestOnly:
        return self

    def __call__(self, tile: Tile) -> int:
        if tile.logits.shape[1] > self.k:
            least = tile.logits.topk(self.k, dim=1).values[:, -1:]
            tile.logits.masked_fill_(tile.logits < least, -math.inf)
        return 0
