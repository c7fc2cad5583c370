"""Which of the candidates that are left become negatives.

    top       the best: highest score first, equal scores by rank. A rescorer's scores decide where there is one
    uniform   any of them, without replacement
    softmax   in proportion to exp(score / temperature), without replacement

A draw is a function of the seed and the query (its text and instruction), so that ranks, blocks and the order of queries
change nothing. The first of K drawn are a draw of fewer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from embedtrain.data.draws import Ints
from embedtrain.errors import ConfigError
from embedtrain.mining.records import NO_DOCUMENT, REASONS, Candidates, MiningData
from embedtrain.mining.scores import finite_scores
from embedtrain.types import text_id

How = Literal["top", "uniform", "softmax"]


class Drawn(NamedTuple):
    """The negatives of Q queries. A row of fewer than K ends in NO_DOCUMENT."""

    documents: Ints  # [Q, K]
    scores: NDArray[np.float32]  # [Q, K] NaN at NO_DOCUMENT
    ranks: Ints  # [Q, K] 0 there
    reasons: NDArray[np.uint8]  # [Q, K] into REASONS

    @property
    def taken(self) -> Ints:
        """[Q] negatives that each row has."""
        return (self.documents != NO_DOCUMENT).sum(1)


def draw_negatives(
    candidates: Candidates, count: int, how: How = "top", temperature: float | None = None, seed: int = 0
) -> Drawn:
    """At most `count` (K) of the candidates that are `kept`, for each query.

    Softmax adds Gumbel noise to score / temperature and takes the K highest, which is to draw one after the other from what
    is left (Kool et al., arXiv:1903.06059). In fp64, since noise decides between scores that are near each other.

    Raises ConfigError for a temperature that is not above 0, DataError for a score that is not finite.
    """
    if how not in ("top", "uniform", "softmax"):
        raise ConfigError(f"miner.draw={how!r}: expected one of top, uniform, softmax.")
    if how == "softmax" and not (temperature is not None and temperature > 0):
        raise ConfigError(f"miner.temperature={temperature}: expected a number above 0 for draw=softmax.")
    scores, ranks = finite_scores(candidates).numpy(), candidates.ranks.numpy()
    if how == "top":
        value = scores
    else:
        noise = -np.log(-np.log(_uniform(seed, query_ids(candidates.data, candidates.queries), ranks)))
        value = noise if how == "uniform" else scores / float(temperature or 1) + noise

    # By value, then by rank, and what is out at the end.
    value = np.where(candidates.kept.numpy(), value, -np.inf)
    order = np.lexsort((ranks, -value), axis=1)[:, :count]
    there = np.take_along_axis(candidates.kept.numpy(), order, axis=1)

    def taken(values: torch.Tensor, missing: float) -> np.ndarray:
        found = np.full((len(candidates.queries), count), missing, dtype=values.numpy().dtype)
        found[:, : order.shape[1]] = np.where(there, np.take_along_axis(values.numpy(), order, axis=1), missing)
        return found

    reasons = np.zeros((len(candidates.queries), count), dtype=np.uint8)
    reasons[:, : order.shape[1]] = there * REASONS.index(how)
    return Drawn(
        taken(candidates.documents, NO_DOCUMENT), taken(candidates.scores, np.nan), taken(candidates.ranks, 0), reasons
    )


def query_ids(data: MiningData, queries: Ints) -> Ints:
    """[Q] the identity of each query: its instruction and its text."""
    texts = (f"{data.instructions[query] or ''}\0{data.queries[query]}" for query in queries.tolist())
    return np.fromiter(map(text_id, texts), dtype=np.int64, count=queries.size)


def _uniform(seed: int, streams: Ints, places: Ints) -> NDArray[np.float64]:
    """[Q, M] between 0 and 1, both excluded: number `places` of SplitMix64 (Steele, Lea and Flood 2014) in each stream [Q]."""
    start = _mix(streams.astype(np.uint64) ^ _mix(np.array([seed], dtype=np.uint64)))
    bits = _mix(start[:, None] + places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
