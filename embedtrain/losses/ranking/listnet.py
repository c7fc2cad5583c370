"""ListNet: similarities as a distribution over candidates, against the distribution of their scores."""

from __future__ import annotations

from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.losses.ranking.lists import ListLoss, Lists


class ListNet(ListLoss):
    """Cross-entropy between the softmax of the scores and the softmax of the similarities of a query's candidates.

        mean over queries of  - sum over candidates c of  softmax(score / u)_c * log softmax(s / t)_c

    Cao et al. 2007 (ICML, doi 10.1145/1273496.1273513), top-one probability. RankKL replaces scores by ranks; less the
    entropy of the scores, which has no gradient, this is the KL of score distillation. Scores count by their size, so that
    u must suit their scale: logits of a ranker 1, probabilities and cosines about 0.05.
    Cost: D similarities; memory linear in the batch.

    temperature        t, divides the similarity
    score_temperature  u, divides the scores
    """

    def __init__(self, *, temperature: float = 0.05, score_temperature: float = 1.0):
        super().__init__(over="query")
        for key, value in (("temperature", temperature), ("score_temperature", score_temperature)):
            if value <= 0:
                raise ConfigError(f"loss.{key}: expected a number above 0, got {value}.")
        self.temperature = temperature
        self.score_temperature = score_temperature

    def per_list(self, lists: Lists) -> Tensor:
        target = lists.fill(lists.log_softmax(lists.score / self.score_temperature).exp(), 0.0)
        return -(target * lists.log_softmax(lists.similarity / self.temperature)).sum(1)
