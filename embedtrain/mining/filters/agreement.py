"""Several models must agree that a candidate is a negative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.filters.percent_of_positive import PercentOfPositive
from embedtrain.mining.pairs import kept_pairs
from embedtrain.mining.records import Candidates, MiningData, Rescorer
from embedtrain.mining.scores import Against


class Agreement:
    """Keeps candidates that at least `votes` of several models score below share * their own score of the positive.

    NV-Retriever (arXiv:2407.15831) mines with each of several teachers and mixes their negatives; here the models vote on one
    list. Each is compared with itself, as in PercentOfPositive, so that logits and cosines can vote together.

    Cost: each model scores every candidate that the filters before left, and all positives. Put it after cheap filters.

    rescorers  the models by name (group `rescorer`)
    share      above 0, up to 1
    votes      models that must agree; null: all
    against    of several positives: lowest | highest | mean
    """

    def __init__(
        self,
        *,
        rescorers: Mapping[str, Any] | None = None,
        share: float = 0.95,
        votes: int | None = None,
        against: Against = "lowest",
    ) -> None:
        self.rescorers: dict[str, Rescorer] = {n: part for n, part in (rescorers or {}).items() if part is not None}
        if not self.rescorers:
            raise ConfigError(
                "agreement.rescorers: empty. Name at least one model: +rescorer@miner.filters.agreement.rescorers.a=cross_encoder"
            )
        if votes is not None and not 1 <= votes <= len(self.rescorers):
            raise ConfigError(
                f"agreement.votes={votes}: expected 1 to {len(self.rescorers)}, the number of rescorers, or null."
            )
        self.votes = votes
        self._limit = PercentOfPositive(share=share, against=against)
        self._known = self._votes = torch.zeros(0, dtype=torch.int64)
        self._facts: dict[str, object] = {}

    def prepare(self, data: MiningData, blocks: Sequence[Candidates]) -> None:
        """Has each model score all pairs of this rank, in one call on every rank, also without pairs."""
        asked = [kept_pairs(block) for block in blocks]
        none = np.empty(0, dtype=np.int64)
        queries, documents = (np.concatenate([none, *(pairs[side] for pairs in asked)]) for side in (0, 1))
        votes = [torch.zeros_like(block.documents) for block in blocks]
        below = {}
        for name, rescorer in self.rescorers.items():
            scores = rescorer.score(data, queries, documents).float().split([pairs[0].size for pairs in asked])
            says = [self._below(block, own, name) for block, own in zip(blocks, scores, strict=True)]
            for total, vote in zip(votes, says, strict=True):
                total += vote
            below[name] = sum(int(vote.sum()) for vote in says)
        keys = [_keys(block)[block.kept] for block in blocks]
        counts = [total[block.kept] for block, total in zip(blocks, votes, strict=True)]
        empty = torch.zeros(0, dtype=torch.int64)
        self._known, order = torch.cat([empty, *keys]).sort()
        self._votes = torch.cat([empty, *counts])[order]
        self._facts = {"candidates": self._known.numel(), "taken for negatives by": below}

    def _below(self, block: Candidates, scores: Tensor, name: str) -> Tensor:
        """[Q, M] bool: kept candidates that model `name` takes for negatives. `scores`: the model's, of `kept_pairs`."""
        own = replace(
            block,
            scores=torch.full_like(block.scores, torch.nan).masked_scatter_(block.kept, scores),
            positive_scores=scores[int(block.kept.sum()) :],
        )
        try:
            return self._limit(own) & block.kept
        except DataError as error:
            raise DataError(f"agreement.rescorers.{name}: {error}") from None

    def __call__(self, candidates: Candidates) -> Tensor:
        stays = torch.zeros_like(candidates.kept)
        keys = _keys(candidates)[candidates.kept]
        place = torch.searchsorted(self._known, keys)
        assert torch.isin(keys, self._known).all(), "prepare() saw other candidates"
        stays[candidates.kept] = self._votes[place] >= (self.votes or len(self.rescorers))
        return stays

    def facts(self) -> dict[str, object]:
        return {"models": {name: part.name for name, part in self.rescorers.items()}, **self._facts}


def _keys(block: Candidates) -> Tensor:
    """[Q, M] one number for each pair."""
    return torch.from_numpy(block.queries)[:, None] * len(block.data.documents) + block.documents
