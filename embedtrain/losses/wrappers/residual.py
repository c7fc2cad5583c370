"""What a frozen model leaves to be learned: its similarities stand in the loss beside those of the encoder."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from embedtrain.errors import ConfigError
from embedtrain.losses.precision import full
from embedtrain.types import EmbeddingBatch, Embeddings, LossOutput, Needs


class Residual(nn.Module):
    """Any loss on the sum of two models' similarities, of which one is frozen: the encoder learns what the other leaves.

        inner(batch) with  s(q, d) = <q, d> + weight * <t(q), t(d)>

    t are the vectors of the teacher, without gradient. SitEmb (arXiv:2508.01959) trains a model that reads a chunk in its
    context beside one that reads the chunk alone, and searches by the sum of both; the weight is not published. With
    source=chunked and late chunking the teacher reads each chunk alone. The sum is an inner product too, of [q, t(q)] and
    [d, t(d)]: an index of such vectors serves it. The exported model is the encoder alone.
    Cost: that of `inner`, in the dimensions of both.

    inner     the loss
    teacher   a name under `teachers`
    weight    of the teacher's similarities
    """

    def __init__(self, *, inner: nn.Module, teacher: str = "teacher", weight: float = 1.0) -> None:
        super().__init__()
        if weight <= 0:
            raise ConfigError(f"loss.weight: expected a number above 0, got {weight}.")
        self.inner = inner
        self.teacher = teacher
        self.weight = weight
        self.needs = Needs(teachers=(teacher,))

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        base = batch.teacher(self.teacher)
        return self.inner(
            replace(
                batch,
                queries=self._beside(batch.queries, base.queries),
                documents=self._beside(batch.documents, base.documents),
            )
        )

    def _beside(self, own: Embeddings, base: Embeddings) -> Embeddings:
        values = full(own.values)
        frozen = base.values.detach().to(values) * math.sqrt(self.weight)
        return Embeddings(torch.cat([values, frozen], dim=1), normalized=False)
