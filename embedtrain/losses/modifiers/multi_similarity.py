"""Only the negatives that a row's weakest positive does not beat clearly."""

from __future__ import annotations

import math
from typing import ClassVar

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile
from embedtrain.losses.modifiers import Turn
from embedtrain.types import EmbeddingBatch


class MultiSimilarityMining:
    """Keeps the negatives of a row that come within epsilon of its weakest positive, and rows that have one.

    With s the similarity of the model in training, a pair (row, column) stays where

        s(row, column) > min over the row's positives of s(positive) - epsilon

    A row that beats all its negatives by epsilon has nothing left to learn: its loss is 0, and so is its gradient.
    Wang et al. 2019 (arXiv:1904.06627, section 3.2), with epsilon 0.1; LUSIFER (arXiv:2501.00874) takes 0.25.
    MultiSimilarityLoss mines by the same rule within classes, and there a positive goes too where it beats the hardest
    negative by epsilon. Of a row with one positive that is the same; of one with several its easy ones stay here, with less
    than e^(-epsilon / temperature) of the gradient for each negative.
    Cost: one comparison per pair.

    epsilon  in units of similarity
    """

    turn: ClassVar[Turn] = "pick"

    def __init__(self, *, epsilon: float = 0.1):
        if epsilon < 0:
            raise ConfigError(
                f"loss.modifiers.multi_similarity.epsilon: {epsilon} would take out negatives that beat a positive. Use a "
                "number >= 0."
            )
        self.epsilon = epsilon

    def bind(self, batch: EmbeddingBatch) -> MultiSimilarityMining:
        return self

    def __call__(self, tile: Tile) -> int:
        limit = tile.weakest - self.epsilon * tile.scale
        tile.logits.masked_fill_(tile.logits <= limit[:, None], -math.inf)
        return 0  # easy, and no suspicion about the pair
