"""Uniformity and alignment: the two things that InfoNCE does, apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedtrain.errors import ConfigError
from embedtrain.losses.distances import root
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.regularisers.texts import document_vectors, needs_view, positives, viewed
from embedtrain.losses.shares import fraction
from embedtrain.types import EmbeddingBatch, LossOutput

# Numbers of one block of distances: 64 MB in fp32.
BLOCK = 1 << 24


class UniformityAlignment(nn.Module):
    """Positives close to their query; all texts evenly over the sphere.

        align(Q, P) = mean over positive pairs of |q - p|^a
        uniform(X)  = log( mean over pairs i < j of  e^(-t |x_i - x_j|^2) )
        loss = alignment_weight * align(Q, P) + uniformity_weight * (uniform(Q) + uniform(P)) / 2

    Wang and Isola 2020 (arXiv:2005.10242, section 4): a = 2, t = 2, weights 1 and 1 on unit vectors; X are the queries,
    and the positives. Each alone measures a model as well as it trains one: both are logged without their weights.
    SpreadOut wants random pairs orthogonal, in memory linear in the batch.
    Cost: all pairs of the texts of all ranks, computed by every rank in full (the logarithm joins them) and once more in
    the backward; memory linear in the batch, by blocks.

    alignment_weight   0 = uniformity alone
    uniformity_weight  0 = alignment alone
    power              a
    sharpness          t
    view               null = the embedding, or the name of a view
    """

    def __init__(
        self,
        *,
        alignment_weight: float = 1.0,
        uniformity_weight: float = 1.0,
        power: float = 2.0,
        sharpness: float = 2.0,
        view: str | None = None,
    ):
        super().__init__()
        for key, value in (("alignment_weight", alignment_weight), ("uniformity_weight", uniformity_weight)):
            if value < 0:
                raise ConfigError(f"loss.{key}: expected a number >= 0, got {value}.")
        if alignment_weight == uniformity_weight == 0:
            raise ConfigError("loss.alignment_weight: with uniformity_weight 0 as well nothing is left to train.")
        if power < 1:
            raise ConfigError(f"loss.power: expected a number >= 1, got {power}; the paper has 2.")
        if sharpness <= 0:
            raise ConfigError(f"loss.sharpness: expected a number above 0, got {sharpness}; the paper has 2.")
        self.alignment_weight = alignment_weight
        self.uniformity_weight = uniformity_weight
        self.power = power
        self.sharpness = sharpness
        self.view = view
        self.needs = needs_view(view)

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        seen = viewed(batch, self.view)
        queries, documents = seen.queries.values, document_vectors(seen, "positives")
        alignment = self._alignment(seen) * fraction(batch)
        sides = [uniformity(x, self.sharpness) for x in (queries, documents)]
        spread = torch.stack(sides).mean() * fraction(batch)
        return LossOutput(
            self.alignment_weight * alignment + self.uniformity_weight * spread,
            {"alignment": alignment.detach(), "uniformity": spread.detach()},
        )

    def _alignment(self, batch: EmbeddingBatch) -> Tensor:
        positive = positives(batch)
        apart = batch.queries.values[batch.relation.owner[positive]] - batch.documents.values[positive]
        return root(apart.square().sum(1)).pow(self.power).sum() / max(1, len(positive))


def uniformity(x: Tensor, sharpness: float) -> Tensor:
    """log of the mean of e^(-sharpness |x_i - x_j|^2) over pairs i < j, of [N, E]; 0 for fewer than two texts."""
    if len(x) < 2:
        return x.sum() * 0.0
    sums = [checkpoint(_block, x, start, stop, sharpness, use_reentrant=False) for start, stop in _blocks(len(x))]
    return torch.logsumexp(torch.stack(sums), 0) - math.log(len(x) * (len(x) - 1) / 2)


def _block(x: Tensor, start: int, stop: int, sharpness: float) -> Tensor:
    """log of the sum over rows i in start .. stop - 1 and j > i."""
    rows, others = x[start:stop], x[start:]
    squared = (rows.square().sum(1)[:, None] + others.square().sum(1) - 2 * rows @ others.T).clamp(min=0)
    later = torch.ones_like(squared, dtype=torch.bool).triu(1)
    return torch.logsumexp((-sharpness * squared).masked_fill(~later, -math.inf).flatten(), 0)


def _blocks(count: int) -> list[tuple[int, int]]:
    """Ranges of rows; the last row has no later one and is left out."""
    rows = max(1, BLOCK // count)
    return [(start, min(start + rows, count - 1)) for start in range(0, count - 1, rows)]
