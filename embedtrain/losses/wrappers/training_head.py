"""A head between the embedding and the loss that is thrown away when training ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from embedtrain.losses.precision import full
from embedtrain.types import EmbeddingBatch, Embeddings, LossOutput


class TrainingHead(nn.Module):
    """Any loss on embeddings that went through a head of the loss's own: trained, in checkpoints, and not exported.

        inner(batch with  z = norm( f(W2 f(W1 e)) )  for e)        one layer: z = norm( f(W e) )

    Gao et al. 2021 (arXiv:2104.08821, section 6.3): unsupervised SimCSE keeps BERT's linear layer and tanh while it trains and
    tests without, which is worth 0.9 points on STS-B there. Chen et al. 2020 (arXiv:2002.05709, SimCLR) have two layers and
    ReLU; there the last layer has no activation.
    Cost: one product of all texts with each layer.

    inner        the loss
    layers       1 or 2
    dim          of each layer's output; None: that of the embedding
    activation   tanh, behind every layer | relu, between the two
    """

    def __init__(
        self,
        *,
        inner: nn.Module,
        layers: Literal[1, 2] = 1,
        dim: int | None = None,
        activation: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        super().__init__()
        self.inner = inner
        self.layers = layers
        self.dim = dim
        self.activation = activation
        self.linear = nn.ModuleList()  # made by `prepare`, which knows the size

    def prepare(self, *, embedding_dim: int, teachers: Mapping[str, int]) -> None:
        if len(self.linear) == self.layers:
            return
        sizes = [embedding_dim, *[self.dim or embedding_dim] * self.layers]
        self.linear.extend(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        return self.inner(replace(batch, queries=self._head(batch.queries), documents=self._head(batch.documents)))

    def _head(self, embeddings: Embeddings) -> Embeddings:
        states = full(embeddings.values)
        layer: Any
        for number, layer in enumerate(self.linear):
            states = F.linear(states, layer.weight.to(states.dtype), layer.bias.to(states.dtype))
            if self.activation == "tanh":
                states = torch.tanh(states)
            elif number < len(self.linear) - 1:
                states = F.relu(states)
        return replace(embeddings, values=F.normalize(states, dim=-1), normalized=True, views={})
