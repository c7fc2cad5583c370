"""Texts as normal distributions: a similarity that knows how sure the encoder is."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from embedtrain.gaussian import document_vectors, query_vectors
from embedtrain.losses.precision import full
from embedtrain.types import EmbeddingBatch, Embeddings, LossOutput, Needs


class GaussianKL(nn.Module):
    """Any loss on texts that are normal distributions: a similarity that knows how sure the encoder is.

        inner(batch) with  s(q, d) = -KL( N_q || N_d ) - h(N_q)

    N is the diagonal normal that the encoder made of a text, h half the sum of 1 + log variance. Zamani & Bendersky 2023
    (arXiv:2304.14522): multivariate representation learning. s is an inner product of a vector of the query alone and a
    vector of the document alone, of 1 + 2k dimensions, so any loss here works on it and any nearest-neighbour index serves
    it; h depends on the query alone and changes no ranking. `inner` should contrast documents for a query (terms: [q2d]):
    h is not the same for two queries.
    Cost: that of `inner`, in 2k + 1 dimensions.

    inner   the loss; its temperature divides the KL, in nats
    """

    needs = Needs(embedding="gaussian")

    def __init__(self, *, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        return self.inner(
            replace(
                batch,
                queries=Embeddings(query_vectors(full(batch.queries.values)), normalized=False),
                documents=Embeddings(document_vectors(full(batch.documents.values)), normalized=False),
            )
        )
