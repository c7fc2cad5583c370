"""The (query, document) pairs that rows bring, with their scores and similarities. O(D) numbers, never Q x D."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.pairs import pair_similarities
from embedtrain.losses.similarity import space_of
from embedtrain.types import NO_OWNER, EmbeddingBatch


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Every document of the batch, of all ranks, with the query that brought it and the score of the two."""

    query: Tensor  # [P] row of the query
    document: Tensor  # [P] row of the document
    score: Tensor  # [P] higher is more similar; in the precision of the embeddings

    @property
    def squashed(self) -> bool:
        """Whether all scores are equal, so that no pair is above another."""
        return self.score.numel() == 0 or bool(self.score.min() == self.score.max())


def scored_pairs(batch: EmbeddingBatch) -> ScoredPairs:
    """Documents that no query brought are left out.

    Raises ConfigError where the rows have no scores, DataError where some have none or one that is not finite.
    """
    relation = batch.relation
    if relation.scores is None:
        raise ConfigError(
            "loss: it learns from scores, but the rows of this batch have none. Give each row `scores`, one for each "
            "positive and negative in that order, or choose a loss that needs none, such as loss=infonce."
        )
    document = torch.nonzero(relation.owner != NO_OWNER).flatten()
    query, score = relation.owner[document], relation.scores[document].to(batch.queries.values.dtype)
    missing = ~torch.isfinite(score)
    if bool(missing.any()):
        raise DataError(
            f"scores: expected a finite number for every pair, got {int(missing.sum())} of {len(score)} in the batch "
            f"missing, NaN or infinite; the first belongs to query {int(query[missing][0])} of the batch. Score every row of "
            "the sources that use this loss, or remove those rows."
        )
    return ScoredPairs(query, document, score)


def pair_similarity(batch: EmbeddingBatch, query: Tensor, document: Tensor) -> Tensor:
    """Of query[p] and document[p], [P], with gradient: inner product, or MaxSim where texts have a vector per token."""
    return pair_similarities(space_of(batch), query.cpu(), document.cpu())


def refuse_multi_vector(batch: EmbeddingBatch) -> None:
    if batch.queries.offsets is not None or batch.documents.offsets is not None:
        raise ConfigError(
            "loss: expected one vector per text, got one vector per token. Use a pooling that gives one vector, or let the "
            "loss read a view that has one."
        )
