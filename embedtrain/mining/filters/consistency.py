"""Queries that find their positive."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.mining.records import NO_DOCUMENT, Candidates
from embedtrain.mining.scores import finite_scores, positive_score


class Consistency:
    """Keeps queries whose positive is among their `top` nearest documents: a model finds the pair plausible.

    E5 (arXiv:2212.03533, section 3) keeps pairs whose passage is in the top 2 of a pool of a million, GTE (arXiv:2308.03281) and
    KaLM-Embedding (arXiv:2501.01028) filter likewise. The other queries are the hard ones: the last stage of CodeR
    (arXiv:2505.12697) trains on those whose positive a small model does not find among its first 3.

    The rank of a positive is 1 + the number of candidates with a higher score. Candidates are the nearest documents of the
    query besides what answers it, so that none above the positive is missing while top <= miner.depth; more is refused.
    Other positives of the query and copies of them do not push a positive down, and equal scores do not either. With a rescorer
    its scores decide, of those that it was asked about.

    top        ranks that are good enough
    positives  best: one positive must be there; every: all of them
    keep       found: the queries that find it; missed: the others
    """

    of_queries: Literal[True] = True

    def __init__(
        self,
        *,
        top: int = 2,
        positives: Literal["best", "every"] = "best",
        keep: Literal["found", "missed"] = "found",
    ) -> None:
        if top < 1:
            raise ConfigError(f"consistency.top={top}: ranks count from 1.")
        if keep not in ("found", "missed"):
            raise ConfigError(f"consistency.keep={keep!r}: expected found or missed.")
        self.top = top
        self.positives = positives
        self.keep = keep

    def __call__(self, candidates: Candidates) -> Tensor:
        looked_at = candidates.documents.shape[1]
        if looked_at < self.top and _has_more(candidates):
            raise ConfigError(
                f"consistency.top={self.top}: only {looked_at} candidates of each query are looked at. Use a top of at most "
                f"{looked_at}, or a larger miner.depth."
            )
        positive = positive_score(candidates, "highest" if self.positives == "best" else "lowest")
        above = finite_scores(candidates) > positive[:, None]  # NaN, where there is no score, is above nothing
        return (above.sum(1) < self.top) == (self.keep == "found")


def _has_more(candidates: Candidates) -> bool:
    """Whether the corpus has documents that were not looked at: some row is full, and with its positives is not all."""
    full = (candidates.documents[:, -1:] != NO_DOCUMENT).any(1)
    known = candidates.documents.shape[1] + candidates.positive_offsets.diff()
    return bool((full & (known < candidates.data.num_searched)).any())
