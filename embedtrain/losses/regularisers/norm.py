"""Norm: short vectors, or vectors of one length."""

from __future__ import annotations

from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.distances import root
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.regularisers.texts import Documents, check_documents, document_vectors, needs_view, viewed
from embedtrain.losses.shares import fraction
from embedtrain.types import EmbeddingBatch, LossOutput


class Norm(nn.Module):
    """The mean norm of the embeddings, or how far it is from a wanted one; queries and documents apart.

        target null   mean over texts of |x|_p^2
        otherwise     mean over texts of (|x|_p - target)^2
        loss = the mean of both sides

    p = 2 keeps the lengths of vectors that are not normalised from growing without use (an inner product grows with them,
    and so does the logit); with target 1 it teaches a model to do without the norm. p = 1 makes vectors sparse, text by
    text: Flops looks at dimensions over the batch instead. Granite Embedding (arXiv:2502.20204) adds a norm to FLOPS.
    Of normalised embeddings p = 2 is 1 whatever the model does, and is refused.
    Cost: none beside the embeddings.

    p          1 or 2
    target     wanted norm; null = 0
    documents  all, or positives
    view       null = the embedding, or the name of a view
    """

    def __init__(
        self, *, p: int = 1, target: float | None = None, documents: Documents = "all", view: str | None = None
    ):
        super().__init__()
        if p not in (1, 2):
            raise ConfigError(f"loss.p: expected 1 (sum of sizes) or 2 (length), got {p}.")
        if target is not None and target < 0:
            raise ConfigError(f"loss.target: expected a norm >= 0, or null, got {target}.")
        check_documents(documents)
        self.p = p
        self.target = target or 0.0
        self.documents: Documents = documents
        self.view = view
        self.needs = needs_view(view)

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        seen = viewed(batch, self.view)
        if self.p == 2 and seen.queries.normalized:
            raise ConfigError(
                "loss.p: these embeddings are normalised, so that their length is 1 whatever the model does. Read a view that "
                "is not normalised, set encoder.normalize=false, or use p: 1."
            )
        part = fraction(batch)
        queries = self._norm(seen.queries.values)
        documents = self._norm(document_vectors(seen, self.documents))
        loss = ((queries - self.target).square().mean() + (documents - self.target).square().mean()) / 2
        return LossOutput(
            loss * part,
            {
                "norm_queries": queries.detach().mean() * part,
                "norm_documents": documents.detach().mean() * part,
            },
        )

    def _norm(self, x: Tensor) -> Tensor:
        """Of each vector, [N]."""
        return x.abs().sum(1) if self.p == 1 else root(x.square().sum(1))
