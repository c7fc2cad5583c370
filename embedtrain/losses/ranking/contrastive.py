"""Contrastive (Hadsell): similar pairs come together, others go apart up to a margin."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.distances import Distance, check_distance, paired
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.ranking.pairs import refuse_multi_vector, scored_pairs
from embedtrain.losses.relation import RelationReader
from embedtrain.losses.shares import in_rows
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class Contrastive(nn.Module):
    """Each pair that a row brings, by itself: near if it is similar, at least a margin away if it is not.

        mean over pairs of  1/2 ( y d^2 + (1 - y) max(0, margin - d)^2 )

    Hadsell et al. 2006 (CVPR, doi 10.1109/CVPR.2006.100). y is 1 for a positive and 0 for a hard negative, or the score of
    the pair. InfoNCE compares a positive with many negatives at once, where this has absolute distances.
    Cost: D distances; memory linear in the batch.

    margin     in units of the distance
    distance   euclidean | squared_euclidean | cosine (1 - cosine)
    targets    relation: positives against hard negatives; scores: y is the score, 0 or 1 (Quora duplicates), or between
    mining     all: every pair; hard: similar pairs farther than the nearest other one, and others nearer than the farthest
               similar one, over all ranks (sentence-transformers' OnlineContrastiveLoss; targets must be 0 or 1)
    reduction  mean: over all pairs of the batch, mined or not; sum: of this and `hard`, twice is OnlineContrastiveLoss
    """

    def __init__(
        self,
        *,
        margin: float = 0.5,
        distance: Distance = "cosine",
        targets: Literal["relation", "scores"] = "relation",
        mining: Literal["all", "hard"] = "all",
        reduction: Literal["mean", "sum"] = "mean",
    ):
        super().__init__()
        if margin <= 0:
            raise ConfigError(f"loss.margin: expected a number above 0, got {margin}. At 0 nothing pushes pairs apart.")
        check_distance(distance)
        for key, value, allowed in (
            ("targets", targets, ("relation", "scores")),
            ("mining", mining, ("all", "hard")),
            ("reduction", reduction, ("mean", "sum")),
        ):
            if value not in allowed:
                raise ConfigError(f"loss.{key}: expected {' or '.join(allowed)}, got {value!r}.")
        self.margin = margin
        self.distance: Distance = distance
        self.targets = targets
        self.mining = mining
        self.reduction = reduction
        self.needs = Needs(scores=targets == "scores")

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        refuse_multi_vector(batch)
        query, document, target = self._pairs(batch)
        distance = paired(batch.queries.values[query], batch.documents.values[document], self.distance)
        kept = in_rows(batch, query)
        if self.mining == "hard":
            kept = kept & hard_pairs(distance.detach(), target)
        near, target = distance[kept], target[kept]
        losses = 0.5 * (target * near.square() + (1 - target) * (self.margin - near).relu().square())
        share = 1 / max(1, len(query))
        return LossOutput(
            losses.sum() * (share if self.reduction == "mean" else 1.0),
            {"kept_pairs": kept.sum().to(distance) * share},
        )

    def _pairs(self, batch: EmbeddingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Query, document and target of each pair of all ranks, [P]."""
        if self.targets == "relation":
            reader = RelationReader(batch.relation)
            row, hard = reader.hard_negatives(torch.arange(reader.num_queries))
            query, document = torch.cat([reader.pair_query, row]), torch.cat([reader.pair_document, hard])
            device = batch.queries.values.device
            target = (torch.arange(len(query)) < len(reader.pair_query)).to(batch.queries.values)
            return query.to(device), document.to(device), target
        pairs = scored_pairs(batch)
        allowed = (pairs.score >= 0) & (pairs.score <= 1)
        if self.mining == "hard":
            allowed = (pairs.score == 0) | (pairs.score == 1)
        if not bool(allowed.all()):
            raise DataError(
                f"scores: loss=contrastive expected {'0 or 1' if self.mining == 'hard' else '0 to 1'} with targets: scores "
                f"and mining: {self.mining}, got {pairs.score[~allowed][0].item():.3g}. Scale the scores, or use "
                "loss=cosent, which reads their order alone."
            )
        return pairs.query, pairs.document, pairs.score


def hard_pairs(distance: Tensor, target: Tensor) -> Tensor:
    """Similar pairs farther than the nearest other one, others nearer than the farthest similar one, [P] bool.

    Where a batch has pairs of one kind alone, the mean distance stands for the other kind.
    """
    similar = target == 1
    near, far = distance[similar], distance[~similar]
    nearest_other = far.min() if len(far) else distance.mean()
    farthest_similar = near.max() if len(near) else distance.mean()
    return torch.where(similar, distance > nearest_other, distance < farthest_similar)
