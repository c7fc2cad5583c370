"""The sigmoid loss: every pair is a question of its own, answered yes or no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import TERMS, contrast
from embedtrain.losses.formulas import sigmoid_pairs
from embedtrain.losses.infonce import contrast_metrics
from embedtrain.losses.modifiers import Modifier, bound
from embedtrain.losses.reductions import sigmoid
from embedtrain.losses.similarity import EMBEDDING, space_of
from embedtrain.losses.temperature import Temperature
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class SigmoidLoss(nn.Module):
    """Asks of each pair by itself whether it is a positive: no softmax, so that batches may be small.

        mean over queries of  log(1 + e^-(s+ / t + b)) + sum over negatives of log(1 + e^(s / t + b))

    SigLIP (Zhai et al. 2023, arXiv:2303.15343), whose batch has one positive per row; with several, their terms are
    averaged. The bias b starts low because almost all pairs are negatives. InfoNCE compares the pairs of a row instead.
    Cost: as InfoNCE, three products per term, memory linear in the batch.

    temperature        divides the similarity, to start from (paper: 0.1)
    learn_temperature  as in the paper; kept within 0.01 .. 1
    bias               added to each logit, to start from (paper: -10)
    learn_bias         as in the paper
    terms              as in InfoNCE; the paper's loss is q2d alone
    views              as in InfoNCE
    modifiers          as in InfoNCE
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        learn_temperature: bool = True,
        bias: float = -10.0,
        learn_bias: bool = True,
        terms: Sequence[str] = ("q2d",),
        views: Mapping[str, float] | None = None,
        modifiers: Mapping[str, Modifier | None] | None = None,
    ):
        super().__init__()
        if not terms or len(set(terms)) < len(terms) or not set(terms) <= set(TERMS):
            raise ConfigError(f"loss.terms: expected distinct names out of {', '.join(TERMS)}, got {list(terms)}.")
        self.temperature = Temperature(temperature, learned=learn_temperature)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learn_bias)
        self.terms = tuple(terms)
        self.views = dict(views or {})
        self.modifiers = {name: modifier for name, modifier in (modifiers or {}).items() if modifier is not None}

    @property
    def needs(self) -> Needs:
        needs = Needs(views=tuple(name for name in self.views if name != EMBEDDING))
        for modifier in self.modifiers.values():
            needs |= getattr(modifier, "needs", Needs())
        return needs

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        sums = contrast(
            batch,
            scale=self.temperature.scale(batch.queries.values),
            terms=self.terms,
            formula=sigmoid_pairs,
            space=space_of(batch, self.views),
            modifiers=bound(self.modifiers.values(), batch),
            reduction=sigmoid,
            bias=self.bias,
        )
        metrics = contrast_metrics(sums)
        if self.temperature.log_scale is not None:
            metrics["temperature"] = batch.num_rows / self.temperature.log_scale.detach().exp()
        if self.bias.requires_grad:
            metrics["bias"] = batch.num_rows * self.bias.detach()
        share = 1 / batch.relation.num_queries
        return LossOutput(sums.loss * share, {name: value * share for name, value in metrics.items()})
