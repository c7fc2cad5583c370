"""A window of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.mining.records import Candidates
from embedtrain.mining.scores import finite_scores


class ScoreRange:
    """Keeps candidates whose score is from lowest to highest, both included, whatever the positive's.

    TopK-Abs of NV-Retriever (arXiv:2407.15831) is highest 0.7, of a model whose similarities are spread as its
    authors' are: look at the report's histogram before choosing. `lowest` takes out what is too easy.

    lowest   null: no limit
    highest  null: no limit
    """

    def __init__(self, *, lowest: float | None = None, highest: float | None = None) -> None:
        if lowest is None and highest is None:
            raise ConfigError(
                "score_range: neither lowest nor highest is set, so that it would keep everything. Set one."
            )
        if lowest is not None and highest is not None and lowest > highest:
            raise ConfigError(f"score_range: lowest={lowest} is above highest={highest}, so that nothing would stay.")
        self.lowest = lowest
        self.highest = highest

    def __call__(self, candidates: Candidates) -> Tensor:
        scores = finite_scores(candidates)
        stays = torch.ones_like(candidates.kept)
        if self.lowest is not None:
            stays &= scores >= self.lowest
        if self.highest is not None:
            stays &= scores <= self.highest
        return stays
