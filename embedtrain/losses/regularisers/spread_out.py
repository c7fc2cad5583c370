"""Spread-out: random pairs of embeddings should be as unlike as random points on a sphere."""

from __future__ import annotations

from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.regularisers.texts import (
    Documents,
    check_documents,
    document_vectors,
    needs_view,
    viewed,
)
from embedtrain.losses.shares import fraction
from embedtrain.types import EmbeddingBatch, LossOutput


class SpreadOut(nn.Module):
    """The second moment of the similarity of two different texts, of queries and of documents apart.

        M2(X) = mean over i != j of (x_i . x_j)^2,   M1(X) = mean over i != j of x_i . x_j
        loss  = sum over X in (queries, documents) of  second(M2(X)) + mean_weight * M1(X)^2

    Zhang et al. 2017 (arXiv:1708.06320, global orthogonal regulariser): M1^2 + max(0, M2 - 1/E), since 1/E is what random
    points reach; mean_weight 1, hinge true. EmbeddingGemma (arXiv:2509.20354) keeps M2 alone, without the hinge, for queries
    and positives, weight 1 beside InfoNCE; so does jina-embeddings-v5 (arXiv:2602.15547). It makes embeddings that quantise
    and truncate well. UniformityAlignment spreads by distances, where the nearest pairs count most.
    Cost: one product of the texts of all ranks with themselves, N x N or E x E, whichever is smaller; memory linear in the
    batch. Every rank computes it in full.

    mean_weight  of M1^2; 0 = none
    hinge        true: second(M2) = max(0, M2 - 1/E); false: M2
    documents    positives, or all with hard negatives
    view         null = the embedding, or the name of a view
    """

    def __init__(
        self,
        *,
        mean_weight: float = 0.0,
        hinge: bool = False,
        documents: Documents = "positives",
        view: str | None = None,
    ):
        super().__init__()
        if mean_weight < 0:
            raise ConfigError(f"loss.mean_weight: {mean_weight} would favour texts that are alike. Use a number >= 0.")
        check_documents(documents)
        self.mean_weight = mean_weight
        self.hinge = hinge
        self.documents: Documents = documents
        self.view = view
        self.needs = needs_view(view)

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        seen = viewed(batch, self.view)
        part = fraction(batch)
        queries = self._spread(seen.queries.values) * part
        documents = self._spread(document_vectors(seen, self.documents)) * part
        return LossOutput(
            queries + documents, {"spread_queries": queries.detach(), "spread_documents": documents.detach()}
        )

    def _spread(self, x: Tensor) -> Tensor:
        second = second_moment(x)
        if self.hinge:
            second = (second - 1 / x.shape[1]).relu()
        return second + self.mean_weight * first_moment(x).square() if self.mean_weight else second


def second_moment(x: Tensor) -> Tensor:
    """Mean of (x_i . x_j)^2 over i != j, of [N, E]; 0 for fewer than two texts.

    The sum of squares of X X' is that of X' X. The smaller of the two is made: then all numbers together are no more than
    the embeddings, and taking the diagonal away from few texts costs no digits.
    """
    if len(x) <= x.shape[1]:
        total = (x @ x.T).fill_diagonal_(0.0).square().sum()
    else:
        total = (x.T @ x).square().sum() - x.square().sum(1).square().sum()
    return total / _pairs(x)


def first_moment(x: Tensor) -> Tensor:
    """Mean of x_i . x_j over i != j, of [N, E]; 0 for fewer than two texts."""
    return (x.sum(0).square().sum() - x.square().sum()) / _pairs(x)


def _pairs(x: Tensor) -> int:
    return max(1, len(x) * (len(x) - 1))
