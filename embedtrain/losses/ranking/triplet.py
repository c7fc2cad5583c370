"""Triplets of a query, its positive and its own hard negative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.distances import Distance, check_distance, paired
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.ranking.pairs import refuse_multi_vector
from embedtrain.losses.relation import Lists, RelationReader
from embedtrain.losses.shares import in_rows
from embedtrain.types import EmbeddingBatch, LossOutput, Relation


class Triplet(nn.Module):
    """A query must be nearer to its positive than to its hard negative by a margin.

        mean over all (q, p, n) of  max(0, d(q, p) - d(q, n) + margin),   n a hard negative of q

    Weinberger and Saul 2009 (jmlr.org/papers/v10/weinberger09a); margins of 0.1 to 0.2 matter (Huang et al. 2020,
    arXiv:2006.11632, for search). Every positive of a query meets each of its hard negatives; those known to answer it
    are left out. OnlineTriplet makes triplets of the batch by class; InfoNCE with `negatives: hard_only` is the softmax
    form of this.
    Cost: two distances per triplet; memory linear in the batch.

    margin    in units of the distance; sentence-transformers has 5, for vectors of any length
    distance  euclidean | squared_euclidean | cosine (1 - cosine)
    """

    def __init__(self, *, margin: float = 0.2, distance: Distance = "cosine"):
        super().__init__()
        if margin < 0:
            raise ConfigError(f"loss.margin: expected a number >= 0, got {margin}.")
        check_distance(distance)
        self.margin = margin
        self.distance: Distance = distance

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        refuse_multi_vector(batch)
        query, positive, negative = (x.to(batch.queries.values.device) for x in triplets(batch.relation))
        if len(query) == 0:
            raise DataError(
                "negatives: loss=triplet compares a positive with hard negatives of the same query, but no row of the batch "
                "has any. Mine them, or use loss=infonce, which takes those of the other rows."
            )
        own = in_rows(batch, query)
        queries, documents = batch.queries.values[query[own]], batch.documents.values
        near = paired(queries, documents[positive[own]], self.distance)
        far = paired(queries, documents[negative[own]], self.distance)
        losses = (near - far + self.margin).relu()
        share = 1 / len(query)
        return LossOutput(losses.sum() * share, {"active_triplets": (losses > 0).sum().to(losses) * share})


def triplets(relation: Relation) -> tuple[Tensor, Tensor, Tensor]:
    """Query, positive and hard negative of every triplet of all ranks, [M] each, CPU."""
    reader = RelationReader(relation)
    row, negative = reader.hard_negatives(torch.arange(reader.num_queries))
    positives = Lists(reader.pair_query, reader.pair_document, reader.num_queries)
    which, positive = positives(row)
    return row[which], positive, negative[which]
