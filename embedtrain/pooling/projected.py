"""Linear layers of its own behind a head: EmbeddingGemma (arXiv:2509.20354), Stella's parallel heads (arXiv:2412.19048)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens


class ProjectedPooling(nn.Module):
    """W_k ... W_1 pooling(h): linear layers in a row, with or without a ReLU between them, behind a head that gives one vector.

    Two layers in a row are one map, learned in two factors: EmbeddingGemma goes from 768 by 3,072 to 768 dimensions. As
    encoder.views such heads lie side by side, each with a size of its own, as those of Stella do. One layer behind the
    embedding itself is encoder.projection_dim. With activation=relu two layers are those behind CDE's mean (arXiv:2410.02525).

    sizes       dimensions behind each layer
    bias        of every layer
    activation  relu between the layers; None: nothing
    pooling     the head in front, such as mean
    hidden_size: of the backbone; supplied by the program.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int],
        bias: bool = False,
        activation: Literal["relu"] | None = None,
        pooling: nn.Module,
        hidden_size: int,
    ) -> None:
        super().__init__()
        if activation not in (None, "relu"):
            raise ConfigError(f"pooling.activation={activation!r}: expected relu or null.")
        if not sizes or min(sizes) < 1:
            raise ConfigError(
                f"pooling.sizes: expected the dimensions behind each layer, one or more, got {list(sizes)}."
            )
        if getattr(pooling, "multi_vector", False) or getattr(pooling, "as_is", False):
            raise ConfigError(f"pooling.pooling: {type(pooling).__name__} does not give one plain vector per text.")
        self.sizes = list(sizes)
        self.bias = bias
        self.activation = activation
        self.pooling = pooling
        widths = [getattr(pooling, "output_dim", hidden_size), *sizes]
        self.layers = nn.ModuleList(nn.Linear(*width, bias=bias) for width in pairwise(widths))
        self.output_dim = widths[-1]
        for asked in ("needs_layers", "needs_router", "reads_spans", "reads_last_token"):
            setattr(self, asked, getattr(pooling, asked, False))

    def forward(self, hidden: Any, tokens: RaggedTokens) -> Tensor:
        """`hidden`: whatever the head in front reads."""
        vectors: Tensor = self.pooling(hidden, tokens).float()
        with torch.autocast(vectors.device.type, enabled=False):
            for number, layer in enumerate(self.layers):
                vectors = layer(torch.relu(vectors) if number and self.activation else vectors)
        return vectors
