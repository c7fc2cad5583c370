"""Queries whose positive is far from them."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.mining.records import Candidates
from embedtrain.mining.scores import Against, positive_score


class MinimumPositive:
    """Keeps queries whose positive scores at least `lowest`: below it, the pair is likely wrong.

    Consistency compares with other documents, and needs no number that depends on the model.

    lowest   in units of the score
    against  of several positives: lowest | highest | mean
    """

    of_queries: Literal[True] = True

    def __init__(self, *, lowest: float, against: Against = "highest") -> None:
        if not math.isfinite(lowest):
            raise ConfigError(f"minimum_positive.lowest={lowest}: expected a number.")
        self.lowest = lowest
        self.against: Against = against

    def __call__(self, candidates: Candidates) -> Tensor:
        return positive_score(candidates, self.against) >= self.lowest
