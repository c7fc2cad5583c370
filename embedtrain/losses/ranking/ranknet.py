"""RankNet: of two candidates of a query, the one with the higher score must be more similar."""

from __future__ import annotations

from typing import Literal

from embedtrain.losses.ranking.lists import Lists
from embedtrain.losses.ranking.pairwise import PairwiseListLoss


class RankNet(PairwiseListLoss):
    """Puts the candidates of each query in the order of their scores, pair by pair.

        sum over candidates i, j of a query with score(i) > score(j) of  log(1 + e^((s_j - s_i) / t))

    Burges et al. 2005 (ICML, doi 10.1145/1102351.1102363); for embeddings E2Rank (arXiv:2510.22733), which adds 2.0 times
    this at t = 0.1 to InfoNCE. E2Rank prints the difference in the exponent the other way round; its code has it as here.
    Only the order of the scores counts: scores of a ranker, grades, or minus the rank that a listwise judge gave.
    E2Rank scores the candidates by a *listwise prompt*: a second query whose text lists the candidates before the question
    (pseudo relevance feedback). That is data: rows whose `query` is such a prompt, whose positives and negatives are the
    candidates, and whose `scores` are the ranking (source listwise); this loss sees them as it sees any other query.
    LambdaLoss is this with weights from NDCG; CoSENT compares all pairs of the batch and takes one logarithm of one sum.
    Cost: D similarities, and C x C numbers for a query with C candidates.

    temperature  divides the similarity
    pairs        mean: over all ordered pairs of the batch (E2Rank's code); sum: over those of a query, then the mean over
                 queries (the papers), so that long lists count more
    """

    def __init__(self, *, temperature: float = 0.1, pairs: Literal["mean", "sum"] = "mean"):
        super().__init__(temperature=temperature, pairs=pairs)

    def weight(self, lists: Lists) -> float:
        return 1.0
