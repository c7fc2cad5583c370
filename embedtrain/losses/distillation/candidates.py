"""A query's own documents as a rectangle [R, C], and who scores them: the student, a teacher, the rows.

Queries bring different numbers of documents. Places without one hold `ABSENT` in place of a logit: so low that its share of
a softmax is 0 to the last bit, and yet finite, so that 0 * log 0 never becomes NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.pairs import pair_similarities
from embedtrain.losses.precision import full
from embedtrain.losses.similarity import EMBEDDING, Space, space_of
from embedtrain.types import EmbeddingBatch, Needs

ABSENT = -1e30
QueryTokens = Literal["sum", "mean"]  # what MaxSim does with the query's tokens


@dataclass(frozen=True, slots=True)
class Candidates:
    """The documents that each of this rank's R queries brought, in their order; C is the most that one brought."""

    query: Tensor  # [P] number of the query of each pair, ascending, CPU
    number: Tensor  # [P] number of its document, CPU
    exists: Tensor  # [R, C] bool: the pairs, row by row
    is_positive: Tensor  # [R, C] bool; False where there is none

    def rectangle(self, values: Tensor) -> Tensor:
        """Values of the pairs [P] at their places [R, C]; 0 where there is none."""
        return values.new_zeros(self.exists.shape).masked_scatter(self.exists, values)

    def logits(self, scores: Tensor, temperature: float) -> Tensor:
        """`scores` [R, C] / temperature; `ABSENT` where there is no document."""
        return (scores / temperature).masked_fill(~self.exists, ABSENT)

    def log_shares(self, scores: Tensor, temperature: float) -> Tensor:
        """log softmax of `scores` [R, C] / temperature over each query's documents; about `ABSENT` where there is none."""
        return self.logits(scores, temperature).log_softmax(-1)

    def similarities(self, space: Space) -> Tensor:
        """How `space` compares each query with its documents, [R, C], with gradient."""
        return self.rectangle(pair_similarities(space, self.query, self.number))

    def teacher_scores(self, batch: EmbeddingBatch, teacher: str | None) -> Tensor:
        """The scores [R, C] of a teacher by name (similarity of its embeddings), or those in the rows for None.

        Raises ConfigError where the run has neither, DataError where some rows have no score.
        """
        if teacher is not None:
            with torch.no_grad():
                return self.similarities(space_of(batch.teacher(teacher))).to(full(batch.queries.values).dtype)
        if batch.relation.scores is None:
            raise ConfigError(
                "loss.teacher: null reads the scores of the rows, but no row brings any. Give each row `scores` (one for each "
                "positive, then one for each negative), or name a teacher that the config has under `teachers`."
            )
        scores, owner = batch.relation.scores, batch.relation.owner
        # Of all ranks, so that all refuse: one that went on alone would wait for the others.
        absent = ~torch.isfinite(scores) & (owner >= 0)
        if absent.any():
            queries = torch.unique(owner[absent]).tolist()
            raise DataError(
                f"loss.teacher: null reads the scores of the rows, but {len(queries)} of this batch's "
                f"{batch.relation.num_queries} rows have none, or one that is no finite number (the first is query {queries[0]} "
                "of the batch). Score them too, or leave the source without scores out."
            )
        return self.rectangle(scores.to(full(batch.queries.values))[self.number.to(scores.device)])


def own_candidates(batch: EmbeddingBatch) -> Candidates:
    relation = batch.relation
    start, stop, _ = batch.rows.indices(relation.num_queries)
    owner = relation.owner.cpu()
    brought = torch.nonzero((owner >= start) & (owner < stop)).flatten()
    number = brought[torch.argsort(owner[brought], stable=True)]
    count = torch.bincount(owner[number] - start, minlength=stop - start)
    exists = torch.arange(max(count.tolist(), default=0)) < count[:, None]
    positive = torch.zeros_like(exists).masked_scatter(exists, relation.is_positive.cpu()[number])
    device = batch.queries.values.device
    return Candidates(owner[number], number, exists.to(device), positive.to(device))


def what_it_reads(teacher: str | None, views: Mapping[str, float]) -> Needs:
    """What a loss reads that takes its scores from `teacher` and compares `views`."""
    seen = tuple(name for name in views if name != EMBEDDING)
    return Needs(scores=teacher is None, teachers=() if teacher is None else (teacher,), views=seen)


def share(of_queries: Tensor, batch: EmbeddingBatch) -> Tensor:
    """This rank's share of the mean over all queries, from the values of its own [R]."""
    return of_queries.sum() / batch.relation.num_queries


def refuse_bad_temperatures(**temperatures: float) -> None:
    for name, value in temperatures.items():
        if not value > 0:
            raise ConfigError(f"loss.{name}: expected a number above 0, got {value}.")
