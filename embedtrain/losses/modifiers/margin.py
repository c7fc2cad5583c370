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

    With s the similarity of the model in training, a pair (row, column) goes when s(row, column) exceeds

        s(positive) + absolute                  Qwen3 (arXiv:2506.05176), UniME (arXiv:2504.17432): 0.1
        s(positive) + relative * |s(positive)|  -0.05 is the 95 % of NV-Retriever (arXiv:2407.15831)

    A query with several positives is compared with its best. GuideFilter asks another model instead.
    Cost: one comparison per pair.

    absolute  in units of similarity; null: relative
    relative  share of the positive; null: absolute
    curated   true: the row's own hard negatives may go too; false: they stay
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
