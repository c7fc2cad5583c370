"""A filter for data with classes: another text of the same class is no negative."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from embedtrain.errors import DataError
from embedtrain.losses.contrast import Tile, TileModifier
from embedtrain.losses.modifiers import Turn
from embedtrain.types import NO_LABEL, EmbeddingBatch, Needs


class SameClassFilter:
    """Takes out negatives of the row's own class: another text of it is no negative.

    QZhou (arXiv:2508.21632), for classification data. A positive has the class of the query that brought it; a hard
    negative has none and stays, where QZhou masks one of the row's class.
    Cost: one comparison per pair.
    """

    turn: ClassVar[Turn] = "filter"
    needs = Needs(labels=True)

    def bind(self, batch: EmbeddingBatch) -> TileModifier:
        relation = batch.relation
        if relation.labels is None:
            raise DataError(
                "loss.modifiers.same_class reads the class of each row, and no row has one. Add a `label` column "
                "(columns: {label: <column>}), or remove the modifier."
            )
        of_document = torch.where(relation.is_positive, relation.labels[relation.owner], NO_LABEL)
        labels = {"q": relation.labels, "d": of_document}

        def take_out(tile: Tile) -> Tensor:
            rows = labels[tile.term[0]][tile.rows.to(of_document.device)][:, None]
            columns = labels[tile.term[2]]
            if tile.columns is not None:
                columns = columns[tile.columns.to(of_document.device)]
            same = (rows == columns) & (rows != NO_LABEL) & (tile.logits > -math.inf)
            tile.logits.masked_fill_(same, -math.inf)
            return same.sum()

        return take_out
