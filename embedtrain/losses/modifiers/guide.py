"""A filter of likely false negatives by another model: the guide."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import Tile, TileModifier
from embedtrain.losses.modifiers import Turn
from embedtrain.types import EmbeddingBatch, Needs


class GuideFilter:
    """Takes out negatives that a guide model finds more similar to the row than its positive.

    With g the guide's similarity, a pair (row, column) goes when g(row, column) exceeds

        g(positive) - absolute                      GISTEmbed (arXiv:2402.16829): 0
        g(positive) - relative * |g(positive)|      a share of it
        threshold                                   CDE's surrogate (arXiv:2410.02525); there, to reach it is enough

    A query with several positives is compared with its best. FalseNegativeFilter asks the model in training instead.
    Cost: one more product per block, of the guide's vectors.

    teacher    the guide, a name under `teachers`
    absolute   this much below the positive, in units of similarity; null: another limit
    relative   this share of the positive below it; null: another limit
    threshold  the limit itself, whatever the positive; null: another limit
    curated    true: the row's own hard negatives may go too (GISTEmbed); false: they stay
    """

    turn: ClassVar[Turn] = "filter"

    def __init__(
        self,
        *,
        teacher: str,
        absolute: float | None = 0.0,
        relative: float | None = None,
        threshold: float | None = None,
        curated: bool = True,
    ):
        if sum(value is not None for value in (absolute, relative, threshold)) != 1:
            raise ConfigError(
                "loss.modifiers.guide: give exactly one of absolute, relative and threshold (the others null), "
                f"got absolute={absolute}, relative={relative}, threshold={threshold}."
            )
        self.teacher = teacher
        self.absolute = absolute
        self.relative = relative
        self.threshold = threshold
        self.curated = curated
        self.needs = Needs(teachers=(teacher,))

    def bind(self, batch: EmbeddingBatch) -> TileModifier:
        guide = batch.teacher(self.teacher)
        vectors = {"q": guide.queries.values, "d": guide.documents.values}
        relation = batch.relation
        positive = torch.nonzero(relation.is_positive).flatten()
        owner = relation.owner[positive]
        found = (vectors["q"][owner] * vectors["d"][positive]).sum(1)
        best = found.new_full((relation.num_queries,), -math.inf).scatter_reduce(0, owner, found, "amax")
        own = found.new_full((relation.num_documents,), -math.inf).index_copy(0, positive, found)
        limits = {"q": self._limit(best), "d": self._limit(own)}

        def take_out(tile: Tile) -> Tensor:
            rows = tile.rows.to(best.device)
            columns = vectors[tile.term[2]]
            if tile.columns is not None:
                columns = columns[tile.columns.to(best.device)]
            similar = vectors[tile.term[0]][rows] @ columns.T
            limit = limits[tile.term[0]][rows][:, None]
            suspect = (similar >= limit) if self.threshold is not None else (similar > limit)
            if not self.curated:
                suspect.view(-1)[tile.hard] = False
            suspect &= tile.logits > -math.inf  # count what was still there
            tile.logits.masked_fill_(suspect, -math.inf)
            return suspect.sum()

        return take_out

    def _limit(self, positive: Tensor) -> Tensor:
        if self.absolute is not None:
            return positive - self.absolute
        if self.relative is not None:
            return positive - self.relative * positive.abs()
        assert self.threshold is not None
        return torch.full_like(positive, self.threshold)
