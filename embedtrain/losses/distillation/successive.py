"""Successive softmax: a query's documents are picked one after the other, as in a draw without replacement."""

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
    share,
    what_it_reads,
)
from embedtrain.losses.distillation.rest import rest_of_batch
from embedtrain.losses.distillation.spread import ScoresRead
from embedtrain.losses.similarity import space_of
from embedtrain.types import EmbeddingBatch, LossOutput


class SuccessiveSoftmax(nn.Module):
    """A query's documents are picked one after the other, as in a draw without replacement.

        sum over a query's documents i, in an order, of  w_i * -log( e^s_i / (sum over j from i on of e^s_j + N) )

    s = similarity / temperature; what has been picked leaves the denominator; N is the sum of e^s over all other documents
    of the batch. With `order: given, weights: teacher` it is the loss `m3_kd_loss` in the code of BGE-M3 (FlagEmbedding;
    the paper, arXiv:2402.03216, does not have it): w = softmax of the teacher's scores, and the order is that of the row,
    the positive first. `order: teacher, weights: equal, negatives: own` is ListMLE (Xia et al. 2008): the likelihood of the
    teacher's ranking under the student's scores. A query's value is a sum, and the loss their mean over queries.
    Cost: one product per (query, own document); with in-batch negatives four products of all queries with all documents.

    teacher              null: the scores of the rows; or a name under `teachers`: similarity of its embeddings
    temperature          divides the student's similarities
    teacher_temperature  divides the teacher's scores in the weights
    order                given: as in the row; teacher: by the teacher's score, best first, as given where equal
    weights              teacher | equal: 1 each
    negatives            in_batch | own: N = 0
    views                null: the embedding; {name: weight}: a sum of views, `embedding` among them
    query_tokens         of MaxSim: sum | mean
    """

    def __init__(
        self,
        *,
        teacher: str | None = None,
        temperature: float = 0.02,
        teacher_temperature: float = 1.0,
        order: Literal["given", "teacher"] = "given",
        weights: Literal["teacher", "equal"] = "teacher",
        negatives: Literal["in_batch", "own"] = "in_batch",
        views: Mapping[str, float] | None = None,
        query_tokens: QueryTokens = "sum",
    ):
        super().__init__()
        refuse_bad_temperatures(temperature=temperature, teacher_temperature=teacher_temperature)
        for key, value, allowed in (
            ("order", order, ("given", "teacher")),
            ("weights", weights, ("teacher", "equal")),
            ("negatives", negatives, ("in_batch", "own")),
        ):
            if value not in allowed:
                raise ConfigError(f"loss.{key}: expected {' or '.join(allowed)}, got {value!r}.")
        if order == "given" and weights == "equal":
            raise ConfigError(
                "loss.order: given with weights: equal reads nothing of the teacher. Set one of them to teacher."
            )
        self.teacher = teacher
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.order = order
        self.weights = weights
        self.in_batch = negatives == "in_batch"
        self.views = dict(views or {})
        self.query_tokens: QueryTokens = query_tokens
        self.needs = what_it_reads(teacher, self.views)
        self.scores_read = ScoresRead.softmax(teacher, teacher_temperature)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        candidates = own_candidates(batch)
        similar = candidates.similarities(space_of(batch, self.views, self.query_tokens))
        logits = candidates.logits(similar, self.temperature)
        scores = candidates.teacher_scores(batch, self.teacher)
        log_weights = candidates.log_shares(scores, self.teacher_temperature)
        weights = log_weights.exp() if self.weights == "teacher" else torch.ones_like(logits)
        weights = weights * candidates.exists
        if self.order == "teacher":
            order = log_weights.argsort(dim=1, descending=True, stable=True)  # what is not there comes last
            logits, weights = logits.gather(1, order), weights.gather(1, order)
        left = from_here_on(logits)
        if self.in_batch:
            rest = rest_of_batch(batch, temperature=self.temperature, views=self.views, query_tokens=self.query_tokens)
            left = torch.logaddexp(left, rest[:, None])
        return LossOutput(share((weights * (left - logits)).sum(1), batch))


def from_here_on(logits: Tensor) -> Tensor:
    """log-sum-exp of each row's entries from each one on, [R, C]."""
    return logits.flip(1).logcumsumexp(1).flip(1)
