"""PRO: each candidate in turn must win against all that score lower, the farther the surer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.ranking.lists import ListLoss, Lists


class PRO(ListLoss):
    """One softmax for each candidate k, against the candidates below it; gaps between scores sharpen it.

        mean over k of  -log( e^(s_k G_k) / (e^(s_k G_k) + sum over j below k of  e^(s_j g_kj)) )
        g_kj = (score_k - score_j) / t,   G_k the largest g_kj of k;   k without anything below are left out

    Song et al. 2023 (arXiv:2306.17492, which sums over k and has t = 1), as CoDiEmb (arXiv:2508.11442) has it:
    weight 0.5 beside 2 * Pearson and 5 * RankKL, over all pairs of the batch. Scores count by their size.
    Cost: D similarities, and C x C numbers for a list of C candidates; over the batch, C = D.

    temperature  t, divides the similarity
    over         batch: all pairs of all ranks are one list (CoDiEmb, for STS); query: the candidates of each query, and
                 the mean over queries (Song et al.)
    steps        mean (CoDiEmb) or sum (Song et al.) over k
    """

    def __init__(
        self,
        *,
        temperature: float = 0.05,
        over: Literal["query", "batch"] = "batch",
        steps: Literal["mean", "sum"] = "mean",
    ):
        super().__init__(over=over)
        if temperature <= 0:
            raise ConfigError(f"loss.temperature: expected a number above 0, got {temperature}. Common: 0.05.")
        if steps not in ("mean", "sum"):
            raise ConfigError(f"loss.steps: expected mean or sum, got {steps!r}.")
        self.temperature = temperature
        self.steps = steps

    def per_list(self, lists: Lists) -> Tensor:
        above = lists.above()
        gap = (lists.score[:, :, None] - lists.score[:, None, :]).masked_fill(~above, 0.0)
        logits = lists.similarity / self.temperature
        own = logits * gap.amax(2)
        below = (logits[:, None, :] * gap).masked_fill(~above, -math.inf)
        losses = torch.logsumexp(torch.cat([own[:, :, None], below], dim=2), dim=2) - own
        some = above.any(2)
        total = losses.masked_fill(~some, 0.0).sum(1)
        return total / some.sum(1) if self.steps == "mean" else total
