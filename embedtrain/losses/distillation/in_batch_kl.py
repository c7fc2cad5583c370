"""Score distillation over the whole batch: the student sees all documents as the teacher sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.distillation.candidates import (
    QueryTokens,
    own_candidates,
    refuse_bad_temperatures,
    what_it_reads,
)
from embedtrain.losses.distillation.rest import rest_of_batch
from embedtrain.losses.distillation.spread import ScoresRead
from embedtrain.losses.divergence import DIVERGENCES, Block, divergences
from embedtrain.losses.similarity import space_of
from embedtrain.types import EmbeddingBatch, LossOutput


class InBatchKL(nn.Module):
    """The student sees all documents of the batch, on all ranks, as the teacher sees them: two softmaxes, one divergence.

        p = softmax(teacher's scores / teacher_temperature)     q = softmax(similarities / temperature)
        mean over queries of  KL(p || q)

    With a teacher by name p is over all documents: what other queries brought is seen as the teacher sees it, so nothing need
    be masked, and false negatives are none. UniME (arXiv:2504.17432, section 3.1) is the forward form, with one
    temperature. With the scores of the rows (teacher: null) p is over the query's own documents and 0 elsewhere, while q is
    over all of them but other answers of the query: a cross-entropy with soft labels and in-batch negatives, forward
    alone. ScoreKL is the same over the query's own documents alone, and says what the directions are.
    Cost: as InfoNCE, and one more product of the teacher's vectors; memory linear in the batch.

    teacher              a name under `teachers`, or null: the scores of the rows
    temperature          divides the student's similarities
    teacher_temperature  divides the teacher's scores
    direction            forward | reverse | symmetric | js
    views                null: the embedding; {name: weight}: a sum of views, `embedding` among them
    query_tokens         of MaxSim: sum | mean
    """

    def __init__(
        self,
        *,
        teacher: str | None = "teacher",
        temperature: float = 0.05,
        teacher_temperature: float = 0.05,
        direction: Literal["forward", "reverse", "symmetric", "js"] = "forward",
        views: Mapping[str, float] | None = None,
        query_tokens: QueryTokens = "sum",
    ):
        super().__init__()
        refuse_bad_temperatures(temperature=temperature, teacher_temperature=teacher_temperature)
        if direction not in DIVERGENCES:
            raise ConfigError(f"loss.direction: expected one of {', '.join(DIVERGENCES)}, got {direction!r}.")
        if teacher is None and direction != "forward":
            raise ConfigError(
                f"loss.direction: {direction} asks how likely the teacher finds every document of the batch, and the scores of "
                "the rows (teacher: null) are of a query's own documents. Use forward, name a teacher, or use score_kl."
            )
        self.teacher = teacher
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.divergence = DIVERGENCES[direction]
        self.views = dict(views or {})
        self.query_tokens: QueryTokens = query_tokens
        self.needs = what_it_reads(teacher, self.views)
        self.scores_read = ScoresRead.softmax(teacher, teacher_temperature)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        value = self._from_scores(batch) if self.teacher is None else self._from_teacher(batch, self.teacher)
        return LossOutput(value / batch.relation.num_queries)

    def _from_teacher(self, batch: EmbeddingBatch, name: str) -> Tensor:
        teacher, student = space_of(batch.teacher(name)), space_of(batch, self.views, self.query_tokens)
        scale = teacher.inputs[0].new_tensor(1 / self.teacher_temperature)

        def target(block: Block) -> Tensor:
            scores = teacher.tile("q2d", block.queries, None, scale)[0]
            return scores.to(block.logits["student"].dtype).log_softmax(1)

        return divergences(
            {"student": student},
            rows=batch.rows,
            scale=1 / self.temperature,
            target=target,
            divergence=self.divergence,
        )["student"]

    def _from_scores(self, batch: EmbeddingBatch) -> Tensor:
        candidates = own_candidates(batch)
        own = candidates.logits(
            candidates.similarities(space_of(batch, self.views, self.query_tokens)), self.temperature
        )
        rest = rest_of_batch(batch, temperature=self.temperature, views=self.views, query_tokens=self.query_tokens)
        log_p = candidates.log_shares(candidates.teacher_scores(batch, None), self.teacher_temperature)
        log_q = own - torch.logaddexp(own.logsumexp(1), rest)[:, None]
        return (log_p.exp() * (log_p - log_q)).masked_fill(~candidates.exists, 0.0).sum()
