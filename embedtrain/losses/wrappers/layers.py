"""Matryoshka in two dimensions: shallower models inside a deep one, shorter vectors inside a long one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.divergence import DIVERGENCES, Block, divergences
from embedtrain.losses.infonce import one_of
from embedtrain.losses.precision import full
from embedtrain.losses.similarity import space_of
from embedtrain.losses.wrappers.matryoshka import refuse_large_dims, refuse_memory
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class LayerMatryoshka(nn.Module):
    """Trains hidden layers, and leading dimensions of them, to be embeddings of their own, by any loss.

        full_weight * inner(batch) + sum over (layer, dim) of  weight * ( inner(sub) + kl_weight * KL )

    `sub` is the batch pooled from hidden layer `layer` and truncated to `dim`; KL pulls it towards the full model, which
    gets no gradient from it:

        in_batch    KL( p_full || p_sub ), p the softmax over all documents of a query at temperature kl_temperature:
                    Starbucks for retrieval (arXiv:2410.13230; code: KL(p_sub || sg p_full) by torch's kl_div, whose
                    first argument is the prediction, so the same), temperature that of the loss
        dimensions  KL( softmax(e_full / t) || softmax(e_sub / t) ), over the dimensions of a vector, t 0.3: Starbucks for
                    STS and 2DMSE (arXiv:2402.14776). The full vector is cut to the same dims

    The form is in what is listed. *Fixed list* (Starbucks): `pairs`, all of them at each step. *Random* (2DMSE): `layers` and
    `dims`, of which each step draws one, the same on all ranks; null dims: the full vector, which is layer dropping
    alone (adaptive layers). Metrics: those of the full model, and loss_full, loss_<layer>x<dim>, kl_<layer>x<dim>.
    Cost: `inner`, and the KL, once more for each pair.

    inner           the loss of each model
    pairs           [[layer, dim], ...]; dim null: all of the vector. Layers count from 1
    layers          to draw from, where pairs is null
    dims            to draw from, where pairs is null; null: all of the vector
    weight          of each pair's loss (Starbucks: 1)
    full_weight     of the full model's loss
    kl_weight       of the KL; 0: none
    kl_over         in_batch | dimensions
    kl_temperature  of both sides
    """

    def __init__(
        self,
        *,
        inner: nn.Module,
        pairs: Sequence[Sequence[int | None]] | None = None,
        layers: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        weight: float = 1.0,
        full_weight: float = 1.0,
        kl_weight: float = 1.0,
        kl_over: Literal["in_batch", "dimensions"] = "in_batch",
        kl_temperature: float = 0.05,
    ):
        super().__init__()
        one_of("kl_over", kl_over, ("in_batch", "dimensions"))
        if (pairs is None) == (layers is None):
            raise ConfigError(
                "loss.pairs: give either pairs (a fixed list of [layer, dim]) or layers (and dims) to draw from, "
                f"got pairs={pairs} and layers={layers}."
            )
        if pairs is not None and dims is not None:
            raise ConfigError(f"loss.dims: {list(dims)} are drawn with layers; with pairs each pair has its dim.")
        if kl_temperature <= 0:
            raise ConfigError(f"loss.kl_temperature: expected a number above 0, got {kl_temperature}.")
        self.inner = inner
        self.pairs = None if pairs is None else [_pair(pair) for pair in pairs]
        self.layers = list(layers or [])
        self.dims = list(dims or [])
        for layer in [*self.layers, *(layer for layer, _ in self.pairs or [])]:
            if layer < 1:
                raise ConfigError(f"loss: layers count from 1, the output of the first, got {layer}.")
        self.weight = weight
        self.full_weight = full_weight
        self.kl_weight = kl_weight
        self.kl_over = kl_over
        self.kl_temperature = kl_temperature

    @property
    def needs(self) -> Needs:
        used = self.layers if self.pairs is None else [layer for layer, _ in self.pairs]
        return Needs(layers=tuple(sorted(set(used))))

    def prepare(self, *, embedding_dim: int, teachers: Mapping[str, int]) -> None:
        """Raises ConfigError where a dim is larger than the embedding, or where `inner` has a memory."""
        refuse_memory(self.inner)
        refuse_large_dims([*self.dims, *(dim for _, dim in self.pairs or [] if dim is not None)], embedding_dim)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        output: LossOutput = self.inner(batch)
        parts = [self.full_weight * output.loss]
        metrics = output.metrics | {"loss_full": output.loss.detach()}
        for layer, dim in self._drawn(batch):
            sub = batch.view(f"layer_{layer}")
            sub = sub if dim is None else sub.truncate(dim)
            name = f"{layer}x{dim or sub.queries.dim}"
            value = self.inner(sub).loss
            parts.append(self.weight * value)
            metrics[f"loss_{name}"] = value.detach()
            if self.kl_weight:
                kl = self._towards(batch, sub)
                parts.append(self.weight * self.kl_weight * kl)
                metrics[f"kl_{name}"] = kl.detach()
        return LossOutput(torch.stack(parts).sum(), metrics)

    def _drawn(self, batch: EmbeddingBatch) -> list[tuple[int, int | None]]:
        if self.pairs is not None:
            return self.pairs
        draw = batch.generator()
        layer = self.layers[int(torch.randint(len(self.layers), (), generator=draw))]
        dim = self.dims[int(torch.randint(len(self.dims), (), generator=draw))] if self.dims else None
        return [(layer, dim)]

    def _towards(self, batch: EmbeddingBatch, sub: EmbeddingBatch) -> Tensor:
        """This rank's share of the mean KL from the full model: over queries, or over all texts."""
        if self.kl_over == "in_batch":
            return self._kl_in_batch(batch, sub) / batch.relation.num_queries
        own = torch.arange(len(batch.queries))[batch.rows]
        mine = torch.isin(batch.relation.owner.cpu(), own)
        total = _kl_of_dimensions(batch.queries.values[batch.rows], sub.queries.values[batch.rows], self.kl_temperature)
        total = total + _kl_of_dimensions(
            batch.documents.values[mine.to(batch.documents.values.device)],
            sub.documents.values[mine.to(sub.documents.values.device)],
            self.kl_temperature,
        )
        return total / (len(batch.queries) + len(batch.documents))

    def _kl_in_batch(self, batch: EmbeddingBatch, sub: EmbeddingBatch) -> Tensor:
        teacher = space_of(batch)
        scale = teacher.inputs[0].new_tensor(1 / self.kl_temperature)

        def target(block: Block) -> Tensor:
            return teacher.tile("q2d", block.queries, None, scale)[0].log_softmax(1)

        return divergences(
            {"sub": space_of(sub)},
            rows=batch.rows,
            scale=1 / self.kl_temperature,
            target=target,
            divergence=DIVERGENCES["forward"],
        )["sub"]


def _kl_of_dimensions(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Sum over texts of KL( softmax(teacher / t) || softmax(student / t) ), the teacher cut to the student's dims."""
    log_p = (full(teacher.detach())[:, : student.shape[1]] / temperature).log_softmax(1)
    log_q = (full(student) / temperature).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum()


def _pair(pair: Sequence[int | None]) -> tuple[int, int | None]:
    if len(pair) != 2 or pair[0] is None:
        raise ConfigError(f"loss.pairs: expected [layer, dim] (dim null: all of the vector), got {list(pair)}.")
    return pair[0], pair[1]
