"""Score distillation: the student's distribution over a query's own documents becomes the teacher's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from embedtrain.losses.distillation.spread import ScoresRead
from embedtrain.losses.similarity import space_of
from embedtrain.types import EmbeddingBatch, LossOutput


class ScoreKL(nn.Module):
    """The student ranks a query's own documents as the teacher does: two softmaxes, one divergence.

        p = softmax(teacher's scores / teacher_temperature)     q = softmax(similarities / temperature)

        forward     KL(p || q): the student covers all that the teacher likes
        reverse     KL(q || p): the student keeps to what the teacher likes most
        symmetric   ( KL(p || q) + KL(q || p) ) / 2:  UniME-V2 with a judge's scores (arXiv:2510.13515), 0.02 for both
        js          ( KL(p || m) + KL(q || m) ) / 2,  m = (p + q) / 2:  Jensen-Shannon, at most log 2

    Averaged over all queries; one that brought a single document adds 0. Hinton et al. 2015 (arXiv:1503.02531); E5
    (arXiv:2212.03533) is the forward form with a cross-encoder's scores plus 0.2 InfoNCE (e5_distillation). Losses of
    other libraries may carry a factor temperature ** 2, which is a factor on the learning rate here. Over all documents
    of the batch: InBatchKL.
    Cost: one product per (query, own document).

    teacher              null: the scores of the rows; or a name under `teachers`: similarity of its embeddings
    temperature          divides the student's similarities
    teacher_temperature  divides the teacher's scores
    direction            forward | reverse | symmetric | js
    views                null: the embedding; {name: weight}: a sum of views, `embedding` among them
    query_tokens         of MaxSim: sum | mean
    """

    def __init__(
        self,
        *,
        teacher: str | None = None,
        temperature: float = 0.05,
        teacher_temperature: float = 1.0,
        direction: Literal["forward", "reverse", "symmetric", "js"] = "forward",
        views: Mapping[str, float] | None = None,
        query_tokens: QueryTokens = "sum",
    ):
        super().__init__()
        refuse_bad_temperatures(temperature=temperature, teacher_temperature=teacher_temperature)
        if direction not in DIVERGENCES:
            raise ConfigError(f"loss.direction: expected one of {', '.join(DIVERGENCES)}, got {direction!r}.")
        self.teacher = teacher
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.divergence = DIVERGENCES[direction]
        self.views = dict(views or {})
        self.query_tokens: QueryTokens = query_tokens
        self.needs = what_it_reads(teacher, self.views)
        self.scores_read = ScoresRead.softmax(teacher, teacher_temperature)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        candidates = own_candidates(batch)
        similar = candidates.similarities(space_of(batch, self.views, self.query_tokens))
        taught = candidates.log_shares(candidates.teacher_scores(batch, self.teacher), self.teacher_temperature)
        learnt = candidates.log_shares(similar, self.temperature)
        return LossOutput(
            share(self.divergence(taught, learnt), batch), {"same_first": share(same_first(taught, learnt), batch)}
        )


def same_first(taught: Tensor, learnt: Tensor) -> Tensor:
    """Whether teacher and student put the same document first, [R] of 0 and 1."""
    if taught.shape[-1] == 0:
        return taught.new_zeros(len(taught))
    return (taught.argmax(-1) == learnt.argmax(-1)).to(taught)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log probabilities over the last dimension."""
    return (p.exp() * (p - q)).sum(-1)


def js(p: Tensor, q: Tensor) -> Tensor:
    middle = torch.logaddexp(p, q) - math.log(2)
    return (kl(p, middle) + kl(q, middle)) / 2


# The teacher's log probabilities come first.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": kl,
    "reverse": lambda p, q: kl(q, p),
    "symmetric": lambda p, q: (kl(p, q) + kl(q, p)) / 2,
    "js": js,
}
