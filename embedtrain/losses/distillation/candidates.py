"""A query's own documents as a rectangle [R, C], and who scores them: the student, a teacher, the rows.

Queries bring different numbers of documents. Places without one hold `ABSENT` in place of a score: as a logit it is so low
that its share of a softmax is 0 to the last bit, and yet finite, so that 0 * log 0 never becomes NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.types import EmbeddingBatch, Embeddings, Needs

ABSENT = -1e30


@dataclass(frozen=True, slots=True)
class Candidates:
    """The documents that each of this rank's R queries brought, in their order; C is the most that one brought."""

    document: Tensor  # [R, C] number of the document; 0 where there is none
    exists: Tensor  # [R, C] bool
    is_positive: Tensor  # [R, C] bool; False where there is none

    def log_shares(self, scores: Tensor, temperature: float) -> Tensor:
        """log softmax of `scores` [R, C] / temperature over each query's documents; about `ABSENT` where there is none."""
        return (scores / temperature).masked_fill(~self.exists, ABSENT).log_softmax(-1)


def own_candidates(batch: EmbeddingBatch) -> Candidates:
    relation = batch.relation
    start, stop, _ = batch.rows.indices(relation.num_queries)
    owner = relation.owner.cpu()
    brought = torch.nonzero((owner >= start) & (owner < stop)).flatten()
    document = brought[torch.argsort(owner[brought], stable=True)]
    query = owner[document] - start
    count = torch.bincount(query, minlength=stop - start)
    place = torch.arange(query.numel()) - (count.cumsum(0) - count)[query]
    numbers = torch.zeros(stop - start, max(count.tolist(), default=0), dtype=torch.int64)
    numbers[query, place] = document
    exists = torch.arange(numbers.shape[1]) < count[:, None]
    numbers, exists = numbers.to(relation.owner.device), exists.to(relation.owner.device)
    return Candidates(numbers, exists, relation.is_positive[numbers] & exists)


def similarities(batch: EmbeddingBatch, candidates: Candidates) -> Tensor:
    """Inner products of this rank's queries with their own documents [R, C], fp32, or fp64 for fp64 embeddings."""
    queries, documents = full(batch.queries)[batch.rows], full(batch.documents)[candidates.document]
    with torch.autocast(queries.device.type, enabled=False):
        return torch.einsum("re,rce->rc", queries, documents)


def full(embeddings: Embeddings) -> Tensor:
    values = embeddings.values
    return values if values.dtype == torch.float64 else values.float()


def teacher_scores(batch: EmbeddingBatch, candidates: Candidates, teacher: str | None) -> Tensor:
    """The scores [R, C] of a teacher by name (similarity of its embeddings), or those in the rows for None.

    Raises ConfigError where the run has neither, DataError where some rows have no score.
    """
    if teacher is not None:
        return similarities(batch.teacher(teacher), candidates).detach()
    if batch.relation.scores is None:
        raise ConfigError(
            "loss.teacher: null reads the scores of the rows, but no row brings any. Give each row `scores` (one for each "
            "positive, then one for each negative), or name a teacher that the config has under `teachers`."
        )
    scores = batch.relation.scores.to(full(batch.queries))[candidates.document]
    absent = ~torch.isfinite(scores) & candidates.exists
    if absent.any():
        queries = torch.nonzero(absent.any(-1)).flatten().tolist()
        raise DataError(
            f"loss.teacher: null reads the scores of the rows, but {len(queries)} of this batch's {len(scores)} rows have none "
            f"or one that is no finite number (the first is query {queries[0]} of the batch). Score them too, or leave the "
            "source without scores out."
        )
    return scores


def scores_needed(teacher: str | None) -> Needs:
    """What a loss reads that takes its scores from `teacher`."""
    return Needs(scores=True) if teacher is None else Needs(teachers=(teacher,))


def share(of_queries: Tensor, batch: EmbeddingBatch) -> Tensor:
    """This rank's share of the mean over all queries, from the values of its own [R]."""
    return of_queries.sum() / batch.relation.num_queries


def refuse_bad_temperatures(**temperatures: float) -> None:
    for name, value in temperatures.items():
        if not value > 0:
            raise ConfigError(f"loss.{name}: expected a number above 0, got {value}.")
