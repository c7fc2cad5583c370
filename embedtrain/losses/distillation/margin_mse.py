"""MarginMSE: the student's distance between positive and negative becomes the teacher's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from embedtrain.losses.distillation.candidates import (
    QueryTokens,
    own_candidates,
    refuse_bad_temperatures,
    what_it_reads,
)
from embedtrain.losses.distillation.spread import ScoresRead
from embedtrain.losses.similarity import space_of
from embedtrain.types import EmbeddingBatch, LossOutput


class MarginMSE(nn.Module):
    """The student's distance between a positive and a hard negative becomes the teacher's.

        mean over (query, positive, hard negative) of  ( (s+ - s-) / t - (r+ - r-) / t' )^2

    s are the student's similarities, r the teacher's scores. Hofstaetter et al. 2020 (arXiv:2010.02666, eq. 8), with
    t = t' = 1 and inner products of vectors that are not normalised; SPLADE++ uses it on sparse vectors. Cosines reach from
    -1 to 1, so a teacher whose margins are those of logits asks for what normalised embeddings cannot give: bring it down by
    `teacher_temperature`, or the student up by `temperature`. Unlike ScoreKL it wants the teacher's margins themselves, and
    not their order and shape alone.
    Cost: one product per (query, own document).

    teacher              null: the scores of the rows; or a name under `teachers`: similarity of its embeddings
    temperature          divides the student's similarities
    teacher_temperature  divides the teacher's scores
    views                null: the embedding; {name: weight}: a sum of views, `embedding` among them
    query_tokens         of MaxSim: sum | mean
    """

    def __init__(
        self,
        *,
        teacher: str | None = None,
        temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        views: Mapping[str, float] | None = None,
        query_tokens: QueryTokens = "sum",
    ):
        super().__init__()
        refuse_bad_temperatures(temperature=temperature, teacher_temperature=teacher_temperature)
        self.teacher = teacher
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.views = dict(views or {})
        self.query_tokens: QueryTokens = query_tokens
        self.needs = what_it_reads(teacher, self.views)
        self.scores_read = ScoresRead.margins(teacher, teacher_temperature / temperature)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        candidates = own_candidates(batch)
        similar = candidates.similarities(space_of(batch, self.views, self.query_tokens))
        taught = candidates.teacher_scores(batch, self.teacher) / self.teacher_temperature
        missing = similar / self.temperature - taught
        # ((s+ - s-) - (r+ - r-))^2 = ((s+ - r+) - (s- - r-))^2, for each positive [R, P, 1] and negative [R, 1, N]
        both = candidates.is_positive[:, :, None] & (candidates.exists & ~candidates.is_positive)[:, None, :]
        squares = (missing[:, :, None] - missing[:, None, :]).square()
        return LossOutput((squares * both).sum() / count_triples(batch))


def count_triples(batch: EmbeddingBatch) -> int:
    """(query, positive, hard negative) of all ranks; at least 1."""
    owner, positive = batch.relation.owner.cpu(), batch.relation.is_positive.cpu()
    brought = owner >= 0
    positives = owner[brought & positive].bincount(minlength=batch.relation.num_queries)
    negatives = owner[brought & ~positive].bincount(minlength=batch.relation.num_queries)
    return max(1, int((positives * negatives).sum()))
