"""Multi-similarity: pairs by class, mined against each other and weighed by how far they are out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.ranking.items import labelled_items
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class MultiSimilarity(nn.Module):
    """Pulls an anchor's class near and pushes other classes away, each pair by its weight among the others.

        mean over anchors a of  1/alpha log(1 + sum over kept p of e^(-alpha (s(a, p) - base)))
                              + 1/beta  log(1 + sum over kept n of e^( beta (s(a, n) - base)))

        kept n: s(a, n) > smallest s(a, p) - epsilon;   kept p: s(a, p) < largest s(a, n) + epsilon

    Wang et al. 2019 (arXiv:1904.06627). Anchors are queries and positives, each with the class of its row; the mean is
    over all of them. OnlineTriplet picks triplets where this weighs pairs.
    Cost: this rank's anchors times all items, numbers and memory.

    alpha      of positives: 2
    beta       of negatives: 50 (paper), 40 (code)
    base       the similarity that positives should exceed and negatives fall below: 1 (paper), 0.5 (code)
    epsilon    margin of the mining, in units of similarity: 0.1; null = keep every pair
    one_sided  true: an anchor that keeps pairs of one kind alone counts, as the paper's formula has it; false: it counts 0,
               as in the authors' code
    """

    needs = Needs(labels=True)

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = 0.1,
        one_sided: bool = True,
    ):
        super().__init__()
        for key, value in (("alpha", alpha), ("beta", beta)):
            if value <= 0:
                raise ConfigError(f"loss.{key}: expected a number above 0, got {value}.")
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon
        self.one_sided = one_sided

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        items = labelled_items(batch)
        anchors = torch.nonzero(items.own).flatten()
        positive, negative = items.anchors(anchors)
        similarity = items.vector[anchors] @ items.vector.T
        if self.epsilon is not None:
            positive, negative = mined(similarity.detach(), positive, negative, self.epsilon)
        pull = log_one_plus_sum(-self.alpha * (similarity - self.base), positive) / self.alpha
        push = log_one_plus_sum(self.beta * (similarity - self.base), negative) / self.beta
        total = pull + push
        if not self.one_sided:
            total = total.masked_fill(~(positive.any(1) & negative.any(1)), 0.0)
        share = 1 / len(items.label)
        return LossOutput(
            total.sum() * share,
            {
                "kept_positives_per_item": positive.sum().to(total) * share,
                "kept_negatives_per_item": negative.sum().to(total) * share,
            },
        )


def mined(similarity: Tensor, positive: Tensor, negative: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The positives and the negatives that are worth a look, [R, N] bool; none where an anchor has no other kind."""
    least = similarity.masked_fill(~positive, math.inf).amin(1, keepdim=True)
    most = similarity.masked_fill(~negative, -math.inf).amax(1, keepdim=True)
    return positive & (similarity < most + epsilon), negative & (similarity > least - epsilon)


def log_one_plus_sum(exponents: Tensor, which: Tensor) -> Tensor:
    """log(1 + sum of e^exponent over `which`) of each row, [R]."""
    return torch.logsumexp(F.pad(exponents.masked_fill(~which, -math.inf), (0, 1)), dim=1)
