"""A distance below the positive."""

from __future__ import annotations

import math

from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.mining.records import Candidates
from embedtrain.mining.scores import Against, finite_scores, positive_score


class MarginToPositive:
    """Keeps candidates with score < positive - margin.

    TopK-MarginPos of NV-Retriever (arXiv:2407.15831), margin 0.05. PercentOfPositive asks for a share instead, which
    depends less on how a model spreads its similarities.

    margin   in units of the score; negative: candidates may score above the positive by as much
    against  of several positives: lowest | highest | mean
    """

    def __init__(self, *, margin: float = 0.05, against: Against = "lowest") -> None:
        if not math.isfinite(margin):
            raise ConfigError(f"margin_to_positive.margin={margin}: expected a number.")
        self.margin = margin
        self.against: Against = against

    def __call__(self, candidates: Candidates) -> Tensor:
        limit = positive_score(candidates, self.against) - self.margin
        return finite_scores(candidates) < limit[:, None]
