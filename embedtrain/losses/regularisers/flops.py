"""FLOPS: sparse embeddings that use few dimensions, and all of them alike."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.regularisers.texts import needs_view, viewed
from embedtrain.losses.shares import fraction
from embedtrain.types import EmbeddingBatch, LossOutput


class Flops(nn.Module):
    """The expected cost of scoring a query against a document by inverted lists, smoothed; it rises over the first steps.

        flops   sum over dimensions of ( mean over texts of |a| )^2
        l1      sum over dimensions of   mean over texts of |a|
        loss = min(1, step / warmup_steps)^2 * (query_weight * f(queries) + document_weight * f(documents))

    Paria et al. 2020 (arXiv:2004.05665); SPLADE (arXiv:2107.05720, arXiv:2109.10086), whose means are over the batch: here
    over the texts of all ranks, queries and documents (hard negatives included) apart. Squaring the mean makes a dimension
    that many texts use dearer than l1, which only counts. The first step is step 1.
    Cost: none beside the embeddings.

    query_weight     SPLADE++ 0.5 (arXiv:2205.04733)
    document_weight  SPLADE++ 0.4
    warmup_steps     50000 in SPLADE, a third of its training; 0 = full weight from the start
    kind             flops | l1
    view             null = the embedding, or the name of a view
    """

    def __init__(
        self,
        *,
        query_weight: float = 0.5,
        document_weight: float = 0.4,
        warmup_steps: int = 50_000,
        kind: Literal["flops", "l1"] = "flops",
        view: str | None = None,
    ):
        super().__init__()
        for key, value in (("query_weight", query_weight), ("document_weight", document_weight)):
            if value < 0:
                raise ConfigError(f"loss.{key}: {value} would favour full vectors. Use a number >= 0.")
        if warmup_steps < 0:
            raise ConfigError(f"loss.warmup_steps: expected a number >= 0, got {warmup_steps}.")
        if kind not in ("flops", "l1"):
            raise ConfigError(f"loss.kind: expected flops or l1, got {kind!r}.")
        self.query_weight = query_weight
        self.document_weight = document_weight
        self.warmup_steps = warmup_steps
        self.kind = kind
        self.view = view
        self.needs = needs_view(view)

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        seen = viewed(batch, self.view)
        part = fraction(batch)
        queries = self._cost(seen.queries.values) * part
        documents = self._cost(seen.documents.values) * part
        rise = self.rise(batch.step)
        return LossOutput(
            rise * (self.query_weight * queries + self.document_weight * documents),
            {
                f"{self.kind}_queries": queries.detach(),
                f"{self.kind}_documents": documents.detach(),
                "active_query_dimensions": _active(seen.queries.values) * part,
                "active_document_dimensions": _active(seen.documents.values) * part,
                "warmup": queries.new_tensor(rise * part),
            },
        )

    def rise(self, step: int) -> float:
        """The part of the weights that counts after `step` updates."""
        return min(1.0, (step + 1) / self.warmup_steps) ** 2 if self.warmup_steps else 1.0

    def _cost(self, x: Tensor) -> Tensor:
        use = x.abs().sum(0) / max(1, len(x))
        return use.square().sum() if self.kind == "flops" else use.sum()


def _active(x: Tensor) -> Tensor:
    """Dimensions that a text uses, on average."""
    return (x != 0).sum().to(x.dtype) / max(1, len(x))
