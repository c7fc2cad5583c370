"""Self-distillation: each view of the student learns from what all of them say together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.distillation.candidates import QueryTokens, refuse_bad_temperatures
from embedtrain.losses.divergence import Block, cross_entropy, divergences
from embedtrain.losses.similarity import EMBEDDING, space_of
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class SelfDistillation(nn.Module):
    """Each view of the encoder learns from what all of them say together.

        mean over views x of  weight_x * CE( softmax(s_ens), softmax(s_x) ),   s_ens = sum over x of ensemble_x * s_x

    No gradient flows into s_ens. s_x are the similarities by view x of a query to all documents of the batch, on all
    ranks, divided by the temperature. BGE-M3 (arXiv:2402.03216, section 3.3): ensemble 1, 0.3, 1 and weights 1, 0.1, 1
    for dense, sparse and multi-vector, MaxSim as a mean over the query's tokens, after the heads are warm. The paper
    starts with the second stage; its code after `self_distill_start_step` steps, and it reads the documents of one
    device. `bge_m3` puts it together with the hard losses. The value is the cross-entropy, so that it does not become 0
    where all views agree.
    Cost: for each view, three products of all queries with all documents, MaxSim's for token vectors.

    ensemble      weight of each view in the teacher; `embedding` is the embedding itself
    weights       weight of each view's loss; the same views
    temperature   divides the similarities, of teacher and students
    start_step    steps before it sets in; until then it is 0
    query_tokens  of MaxSim: sum | mean
    """

    def __init__(
        self,
        *,
        ensemble: Mapping[str, float],
        weights: Mapping[str, float],
        temperature: float = 0.02,
        start_step: int = 0,
        query_tokens: QueryTokens = "mean",
    ):
        super().__init__()
        refuse_bad_temperatures(temperature=temperature)
        if len(ensemble) < 2 or set(ensemble) != set(weights):
            raise ConfigError(
                f"loss.ensemble and loss.weights: expected the same two or more views, got {', '.join(ensemble) or 'none'} and "
                f"{', '.join(weights) or 'none'}."
            )
        self.ensemble = dict(ensemble)
        self.weights = dict(weights)
        self.temperature = temperature
        self.start_step = start_step
        self.query_tokens: QueryTokens = query_tokens
        self.needs = Needs(views=tuple(name for name in ensemble if name != EMBEDDING))

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        students = {name: space_of(batch, {name: 1.0}, self.query_tokens) for name in self.ensemble}
        if batch.step < self.start_step:
            nothing = [x.sum() * 0 for space in students.values() for x in space.inputs]
            return LossOutput(torch.stack(nothing).sum())
        values = divergences(
            students,
            rows=batch.rows,
            scale=1 / self.temperature,
            target=self._together,
            divergence=cross_entropy,
        )
        losses = {name: value / batch.relation.num_queries for name, value in values.items()}
        total = torch.stack([weight * losses[name] for name, weight in self.weights.items()]).mean()
        return LossOutput(total, {f"loss_{name}": loss.detach() for name, loss in losses.items()})

    def _together(self, block: Block) -> Tensor:
        parts = [weight * block.logits[name] for name, weight in self.ensemble.items()]
        return torch.stack(parts).sum(0).log_softmax(1)
