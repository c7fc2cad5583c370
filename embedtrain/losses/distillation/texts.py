"""Which texts of a batch a loss about single texts reads: queries, positives, hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.precision import full
from embedtrain.types import EmbeddingBatch

KINDS = ("queries", "positives", "negatives")


@dataclass(frozen=True, slots=True)
class Kind:
    """The texts of one kind that all ranks brought. Documents that no query brought belong to none."""

    name: str
    numbers: Tensor  # [M] among queries or documents
    own: Tensor  # [M] bool, whether this rank brought it

    def vectors(self, batch: EmbeddingBatch) -> Tensor:
        """Their embeddings in `batch` (the student's, a teacher's), [M, E], fp32 or fp64."""
        return full((batch.queries if self.name == "queries" else batch.documents).values)[self.numbers]


def texts_of(batch: EmbeddingBatch, kinds: Sequence[str]) -> list[Kind]:
    relation = batch.relation
    start, stop, _ = batch.rows.indices(relation.num_queries)
    found = []
    for name in kinds:
        if name == "queries":
            numbers = owner = torch.arange(relation.num_queries, device=relation.owner.device)
        else:
            brought = (relation.owner >= 0) & (relation.is_positive == (name == "positives"))
            numbers = torch.nonzero(brought).flatten()
            owner = relation.owner[numbers]
        found.append(Kind(name, numbers, (owner >= start) & (owner < stop)))
    return found


def all_vectors(batch: EmbeddingBatch, kinds: Sequence[Kind]) -> Tensor:
    """Texts of all kinds, one kind after the other, [M, E]."""
    return torch.cat([kind.vectors(batch) for kind in kinds])


def refuse_unknown_kinds(texts: Sequence[str]) -> None:
    if not texts or len(set(texts)) < len(texts) or not set(texts) <= set(KINDS):
        raise ConfigError(f"loss.texts: expected distinct names out of {', '.join(KINDS)}, got {list(texts)}.")
