"""A share of the positive's score."""

from __future__ import annotations

from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.mining.records import Candidates
from embedtrain.mining.scores import Against, finite_scores, positive_score, share_of


class PercentOfPositive:
    """Keeps candidates with score < share * positive.

    TopK-PercPos of NV-Retriever (arXiv:2407.15831), share 0.95: the best of its filters of false negatives. Logits of
    cross-encoders are often negative, and share * positive then lies above the positive and would keep what scores
    higher. The limit is therefore

        positive - (1 - share) * |positive|

    which is the same for positive scores and below the positive for all.

    share    above 0, up to 1
    against  of several positives: lowest | highest | mean
    """

    def __init__(self, *, share: float = 0.95, against: Against = "lowest") -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"percent_of_positive.share={share}: expected a share above 0, up to 1.")
        self.share = share
        self.against: Against = against

    def __call__(self, candidates: Candidates) -> Tensor:
        limit = share_of(positive_score(candidates, self.against), self.share)
        return finite_scores(candidates) < limit[:, None]
