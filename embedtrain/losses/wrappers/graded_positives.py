"""A contrastive loss on graded pairs: only what was graded well is a positive."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from embedtrain.losses.precision import full
from embedtrain.types import NO_OWNER, EmbeddingBatch, LossOutput, Needs


class GradedPositives(nn.Module):
    """Any contrastive loss, of the queries whose own document has a score of at least `threshold`.

        inner(batch without the other queries), and the documents of all queries stay as negatives

    CoDiEmb (arXiv:2508.11442) adds it, on a middle layer, to its losses over grades: what is alike is pulled together, and a pair
    graded low is no positive. Of a kept query, a document below the threshold becomes a hard negative, and documents that nobody
    graded (NaN) as well. A batch without such a query costs 0.
    Cost: that of `inner`, for the queries that are kept.

    inner       the loss
    threshold   least score of a positive, in the units of the scores; with a source's score_range they are 0 to 1
    """

    needs = Needs(scores=True)

    def __init__(self, *, inner: nn.Module, threshold: float = 0.5) -> None:
        super().__init__()
        self.inner = inner
        self.threshold = threshold

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        relation = batch.relation
        assert relation.scores is not None, "needs says that scores are read"
        positive = relation.is_positive & (relation.owner != NO_OWNER) & (relation.scores >= self.threshold)
        kept = torch.unique(relation.owner[positive])  # ascending
        if not kept.numel():
            return LossOutput(full(batch.queries.values).sum() * 0.0)
        return self.inner(_only(batch, kept, positive))


def _only(batch: EmbeddingBatch, kept: Tensor, positive: Tensor) -> EmbeddingBatch:
    """The queries `kept` [M] with all documents, of which `positive` [D] are theirs."""
    fewer = batch.select(kept)
    place = torch.full_like(batch.relation.query_ids, NO_OWNER)
    place[kept] = torch.arange(kept.numel(), device=place.device)
    owner = batch.relation.owner
    relation = replace(
        fewer.relation,
        document_ids=batch.relation.document_ids,
        owner=torch.where(owner == NO_OWNER, NO_OWNER, place[owner]),
        is_positive=positive,
        scores=batch.relation.scores,
    )
    teachers = {name: _only(teacher, kept, positive) for name, teacher in batch.teachers.items()}
    return replace(fewer, documents=batch.documents, relation=relation, teachers=teachers)
