"""A rank's share of a loss. Shares are added up over ranks, values and gradients alike (`types.LossOutput`).

A sum of terms of one query each: every rank adds up the terms of its own rows (`in_rows`). A value that joins the texts of
all ranks (a logarithm of a sum, a square of a mean): every rank computes it in full, with gradient to all embeddings, and
gives its `fraction` of it; since the fractions add up to 1, so do the gradients.
"""

from __future__ import annotations

from torch import Tensor

from embedtrain.types import EmbeddingBatch


def fraction(batch: EmbeddingBatch) -> float:
    """This rank's part of the queries of all ranks, 0 .. 1."""
    return batch.num_rows / batch.relation.num_queries


def in_rows(batch: EmbeddingBatch, query: Tensor) -> Tensor:
    """Which of `query` [P] are rows of this rank, [P] bool; NO_OWNER is not."""
    start, stop, _ = batch.rows.indices(batch.relation.num_queries)
    return (query >= start) & (query < stop)
