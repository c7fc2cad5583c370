"""Triplets found in the batch by class: an anchor, one of its class, one of another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.distances import Distance, between, check_distance
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.ranking.items import Items, labelled_items
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class OnlineTriplet(nn.Module):
    """An anchor must be nearer to its own class than to any other by a margin; triplets are made of the batch.

        mean over the chosen (a, p, n) of  max(0, d(a, p) - d(a, n) + margin)

        all        every triplet
        semi_hard  for each (a, p) the nearest n that is farther than p; where there is none, the farthest n
        hard       for each a the farthest p and the nearest n

    Schroff et al. 2015 (arXiv:1503.03832, FaceNet): semi_hard, margin 0.2, squared Euclidean distance of unit vectors. The
    paper asks for any n within the margin; the nearest beyond p, and the way out where none is, are TensorFlow Addons' and
    sentence-transformers'. Hermans et al. 2017 (arXiv:1703.07737): all and hard. Anchors are queries and positives; each
    carries the class of its row. An anchor alone in its class, or without another class, makes no triplet (in
    sentence-transformers' hard form such an anchor counts, with a distance of 0 to its missing positive). Batches must
    hold several items of a class. MultiSimilarity weighs all pairs where this picks triplets.
    Cost: this rank's anchors times all items, numbers and memory; for `all` too, by running sums over sorted distances.

    strategy  which triplets
    margin    in units of the distance
    distance  euclidean | squared_euclidean | cosine (1 - cosine)
    average   all: over the chosen triplets; active: over those above 0 (Hermans' nonzero mean, the form of
              sentence-transformers' BatchAllTripletLoss), which costs every rank the distances of all anchors
    """

    needs = Needs(labels=True)

    def __init__(
        self,
        *,
        strategy: Literal["all", "semi_hard", "hard"] = "semi_hard",
        margin: float = 0.2,
        distance: Distance = "squared_euclidean",
        average: Literal["all", "active"] = "all",
    ):
        super().__init__()
        if strategy not in STRATEGIES:
            raise ConfigError(f"loss.strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}.")
        if margin < 0:
            raise ConfigError(f"loss.margin: expected a number >= 0, got {margin}.")
        if average not in ("all", "active"):
            raise ConfigError(f"loss.average: expected all or active, got {average!r}.")
        check_distance(distance)
        self.strategy = strategy
        self.margin = margin
        self.distance: Distance = distance
        self.average = average

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        items = labelled_items(batch)
        loss, active = self._triplets(items, torch.nonzero(items.own).flatten())
        chosen = max(1, _number_of_triplets(items, self.strategy))
        count = self._active(items) if self.average == "active" else chosen
        return LossOutput(loss / count, {"active_triplets": active.to(loss) / chosen})

    def _triplets(self, items: Items, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over the triplets of `anchors` [R], and how many are above 0."""
        distance = between(items.vector[anchors], items.vector, self.distance)
        return STRATEGIES[self.strategy](distance, *items.anchors(anchors), self.margin)

    @torch.no_grad()
    def _active(self, items: Items) -> Tensor:
        """Triplets above 0 of all ranks, at least 1; by blocks as large as this rank's own."""
        everyone = torch.arange(len(items.label), device=items.label.device)
        blocks = everyone.split(max(1, int(items.own.sum())))
        return torch.stack([self._triplets(items, block)[1] for block in blocks]).sum().clamp(min=1)


def all_triplets(distance: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Anchors [R] against items [N]: sum of losses, number above 0.

    With the negatives of an anchor sorted, those inside the margin of (a, p) are the first c, and their losses are
    c * (d(a, p) + margin) minus a running sum: R x N numbers for R x N x N triplets.
    """
    ascending = distance.masked_fill(~negative, math.inf).sort(dim=1).values
    running = torch.cumsum(ascending.masked_fill(ascending.isinf(), 0.0), dim=1)
    running = torch.cat([running.new_zeros(len(running), 1), running], dim=1)
    reach = distance + margin
    count = torch.searchsorted(ascending.detach(), reach.detach())
    losses = count * reach - running.gather(1, count)
    return losses[positive].sum(), count[positive].sum()


def semi_hard_triplets(distance: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    ascending = distance.masked_fill(~negative, math.inf).sort(dim=1).values
    beyond = torch.searchsorted(ascending.detach(), distance.detach(), right=True)
    some = beyond < negative.sum(1, keepdim=True)
    nearest = ascending.gather(1, torch.where(some, beyond, 0))
    farthest = distance.masked_fill(~negative, -math.inf).amax(1, keepdim=True)
    chosen = torch.where(some, nearest, farthest)
    return _sum(distance - chosen + margin, positive & negative.any(1, keepdim=True))


def hard_triplets(distance: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    farthest = distance.masked_fill(~positive, -math.inf).amax(1)
    nearest = distance.masked_fill(~negative, math.inf).amin(1)
    return _sum(farthest - nearest + margin, positive.any(1) & negative.any(1))


def _sum(losses: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    kept = losses[which].relu()
    return kept.sum(), (kept > 0).sum()


# distances [R, N], positives, negatives, margin -> sum of losses, number above 0
Strategy = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
STRATEGIES: dict[str, Strategy] = {"all": all_triplets, "semi_hard": semi_hard_triplets, "hard": hard_triplets}


def _number_of_triplets(items: Items, strategy: str) -> int:
    """That a strategy chooses, over all ranks."""
    positives = items.of_class() - 1
    negatives = len(items.label) - items.of_class()
    if strategy == "all":
        return int((positives * negatives).sum())
    return int((positives if strategy == "semi_hard" else positives.clamp(max=1))[negatives > 0].sum())
