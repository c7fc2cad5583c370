"""Matryoshka: the leading dimensions of an embedding are trained to be embeddings of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from embedtrain.errors import ConfigError
from embedtrain.types import EmbeddingBatch, LossOutput


class Matryoshka(nn.Module):
    """Trains the leading dimensions of an embedding to be embeddings of their own, by any loss.

        sum over dims of  weight * inner(batch, truncated to dim)

    Kusupati et al. 2022 (arXiv:2205.13147). LayerMatryoshka shortens the model as well. Truncation puts embeddings back
    on the unit sphere, as a user of the short vector would. Metrics: those of the largest dim, and the loss of each dim
    as loss_<dim>.
    Cost: that of `inner` for each dim.

    inner          the loss of each dim
    dims           dimensions to train, any order; the full size is not added by itself
    weights        one per dim, null = 1 each
    dims_per_step  null: all of them; n: that many, drawn anew at each step, the same on all ranks
    """

    def __init__(
        self,
        *,
        inner: nn.Module,
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
        dims_per_step: int | None = None,
    ):
        super().__init__()
        if not dims or min(dims) < 1 or len(set(dims)) < len(dims):
            raise ConfigError(f"loss.dims: expected distinct dimensions of at least 1, got {list(dims)}.")
        weights = [1.0] * len(dims) if weights is None else weights
        if len(weights) != len(dims):
            raise ConfigError(
                f"loss.weights: expected one per dim, {len(dims)} for dims {list(dims)}, got {len(weights)}: {list(weights)}."
            )
        if dims_per_step is not None and not 1 <= dims_per_step <= len(dims):
            raise ConfigError(f"loss.dims_per_step: expected 1 to {len(dims)}, or null for all, got {dims_per_step}.")
        self.inner = inner
        self.weights = dict(sorted(zip(dims, weights, strict=True), reverse=True))  # largest first
        self.dims_per_step = dims_per_step

    def prepare(self, *, embedding_dim: int, teachers: Mapping[str, int]) -> None:
        """Raises ConfigError where a dim is larger than the embedding: known once the encoder is, before any step."""
        refuse_memory(self.inner)
        refuse_large_dims(self.weights, embedding_dim)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        outputs: dict[int, LossOutput] = {dim: self.inner(batch.truncate(dim)) for dim in self._drawn(batch)}
        loss = torch.stack([self.weights[dim] * output.loss for dim, output in outputs.items()]).sum()
        each = {f"loss_{dim}": output.loss.detach() for dim, output in outputs.items()}
        return LossOutput(loss, outputs[max(outputs)].metrics | each)

    def _drawn(self, batch: EmbeddingBatch) -> list[int]:
        dims = list(self.weights)
        if self.dims_per_step is None:
            return dims
        order = torch.randperm(len(dims), generator=batch.generator())[: self.dims_per_step]
        return [dims[i] for i in sorted(order.tolist())]


def refuse_large_dims(dims: Mapping[int, float] | Sequence[int], embedding_dim: int) -> None:
    too_large = [dim for dim in dims if dim > embedding_dim]
    if too_large:
        raise ConfigError(
            f"loss.dims: {too_large} above the embedding size {embedding_dim}. Use dims <= {embedding_dim}."
        )


def refuse_memory(inner: nn.Module) -> None:
    """A memory of past embeddings cannot stand inside a loss that changes their size, or takes them from another layer."""
    if any(getattr(module, "remembers_dim", False) for module in inner.modules()):
        raise ConfigError(
            "loss.inner has a memory, which remembers embeddings of one size, inside a loss that changes the size. "
            "Remove loss.inner.extra.memory."
        )
