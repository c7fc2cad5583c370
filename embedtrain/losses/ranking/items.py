"""The labelled texts of a batch, for losses by class: queries and their positives alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.ranking.pairs import refuse_multi_vector
from embedtrain.losses.shares import in_rows
from embedtrain.types import NO_LABEL, NO_OWNER, EmbeddingBatch


@dataclass(frozen=True, slots=True)
class Items:
    """N queries and positives of all ranks; hard negatives have no class and are left out."""

    vector: Tensor  # [N, E]
    label: Tensor  # [N] number of the class, 0 .. classes - 1
    own: Tensor  # [N] bool, brought by this rank's queries

    def of_class(self) -> Tensor:
        """How many items have the class of each item, itself included, [N]."""
        return torch.bincount(self.label)[self.label]

    def anchors(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """For the items at `which` [R]: who is a positive and who is a negative of theirs, [R, N] bool each."""
        same = self.label[which][:, None] == self.label
        self_pair = which[:, None] == torch.arange(len(self.label), device=which.device)
        return same & ~self_pair, ~same


def labelled_items(batch: EmbeddingBatch) -> Items:
    """Raises ConfigError where the rows have no labels, DataError where some have none."""
    refuse_multi_vector(batch)
    relation = batch.relation
    if relation.labels is None:
        raise ConfigError(
            "loss: it learns from classes, but the rows of this batch have none. Give each row a `label`, or choose a loss "
            "that needs none, such as loss=infonce or loss=triplet."
        )
    missing = relation.labels == NO_LABEL
    if bool(missing.any()):
        raise DataError(
            f"label: expected one in every row, but {int(missing.sum())} of {len(missing)} queries in the batch have none; "
            f"the first is query {int(torch.nonzero(missing)[0])}. Label every row of the sources that use this loss."
        )
    positive = torch.nonzero(relation.is_positive & (relation.owner != NO_OWNER)).flatten()
    owner = torch.cat([torch.arange(relation.num_queries, device=positive.device), relation.owner[positive]])
    _, label = torch.unique(relation.labels[owner], return_inverse=True)
    vector = torch.cat([batch.queries.values, batch.documents.values[positive]])
    return Items(vector, label, in_rows(batch, owner))
