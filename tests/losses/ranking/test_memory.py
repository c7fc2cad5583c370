"""Documents that no query of the batch brought, as a memory of past batches has them: graded losses do not look at them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from embedtrain.losses.ranking.contrastive import Contrastive
from embedtrain.losses.ranking.cosent import CoSENT
from embedtrain.losses.ranking.multi_similarity import MultiSimilarity
from embedtrain.losses.ranking.online_triplet import OnlineTriplet
from embedtrain.losses.ranking.ranknet import RankNet
from embedtrain.losses.ranking.triplet import Triplet
from embedtrain.losses.regularisers.uniformity_alignment import UniformityAlignment
from embedtrain.types import NO_OWNER, EmbeddingBatch
from tests.losses.ranking.batches import graded_batch


def with_memory(batch: EmbeddingBatch, *, is_positive: bool) -> EmbeddingBatch:
    """Two documents more."""
    relation, values = batch.relation, batch.documents.values.detach()
    return replace(
        batch,
        documents=replace(batch.documents, values=torch.cat([values, -values[:2]])),
        relation=replace(
            relation,
            document_ids=torch.cat([relation.document_ids, torch.tensor([5, 6])]),
            owner=torch.cat([relation.owner, torch.tensor([NO_OWNER, NO_OWNER])]),
            is_positive=torch.cat([relation.is_positive, torch.tensor([is_positive] * 2)]),
            scores=torch.cat([relation.scores, torch.tensor([math.nan] * 2, dtype=torch.float64)]),
        ),
    )


BY_OWNER = [CoSENT(), RankNet(), OnlineTriplet(), MultiSimilarity(), UniformityAlignment()]
BY_RELATION = [Triplet(), Contrastive()]  # a relation has no positive pair without a query


@pytest.mark.parametrize(
    ("loss", "is_positive"),
    [(loss, False) for loss in BY_OWNER + BY_RELATION] + [(loss, True) for loss in BY_OWNER],
    ids=lambda value: str(value) if isinstance(value, bool) else type(value).__name__,
)
def test_a_document_that_no_query_brought_changes_nothing(loss, is_positive):
    batch = graded_batch(1)
    torch.testing.assert_close(loss(with_memory(batch, is_positive=is_positive)).loss, loss(batch).loss)
