"""Matryoshka over the number of vectors: the first few token vectors are trained to be a multi-vector of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from embedtrain.errors import ConfigError
from embedtrain.types import EmbeddingBatch, Embeddings, LossOutput, Needs


class TokenGroups(nn.Module):
    """Matryoshka over the number of vectors: the first few token vectors are trained to be a multi-vector of their own.

        sum over groups of  weight * inner(batch, the first q vectors of a query and the first d of a document)

    MetaEmbed (arXiv:2509.18095): nested groups (1, 1), (2, 4), (4, 8), (8, 16), (16, 64) of learnable tokens' vectors,
    weights 1, MaxSim summed over query vectors, temperature 0.03. A text with fewer vectors gives what it has. Metrics: those
    of the largest group, and the loss of each as loss_<q>x<d>.
    Cost: that of `inner` for each group.

    inner     a loss over multi-vector embeddings
    groups    [[query vectors, document vectors], ...]
    weights   one per group, null = 1 each
    """

    needs = Needs(embedding="multi_vector")

    def __init__(self, *, inner: nn.Module, groups: Sequence[Sequence[int]], weights: Sequence[float] | None = None):
        super().__init__()
        weights = [1.0] * len(groups) if weights is None else weights
        if not groups or any(len(group) != 2 or min(group) < 1 for group in groups):
            raise ConfigError(f"loss.groups: expected [[query vectors, document vectors], ...], got {list(groups)}.")
        if len(weights) != len(groups):
            raise ConfigError(f"loss.weights: expected one per group, {len(groups)}, got {len(weights)}.")
        self.inner = inner
        self.weights = {(q, d): weight for (q, d), weight in zip(groups, weights, strict=True)}

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        outputs: dict[tuple[int, int], LossOutput] = {}
        for q, d in self.weights:
            outputs[q, d] = self.inner(
                replace(batch, queries=first_tokens(batch.queries, q), documents=first_tokens(batch.documents, d))
            )
        loss = torch.stack([weight * outputs[group].loss for group, weight in self.weights.items()]).sum()
        each = {f"loss_{q}x{d}": output.loss.detach() for (q, d), output in outputs.items()}
        return LossOutput(loss, outputs[max(outputs)].metrics | each)


def first_tokens(embeddings: Embeddings, count: int) -> Embeddings:
    """The first `count` vectors of each text."""
    if embeddings.offsets is None:
        raise ConfigError(
            "token_groups: the embedding has one vector per text. Use pooling=multi_vector, or loss=matryoshka."
        )
    lengths = embeddings.offsets.diff().clamp(max=count)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    text = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    rows = torch.arange(len(text)) + (embeddings.offsets[:-1] - offsets[:-1])[text]
    values = embeddings.values.index_select(0, rows.to(embeddings.values.device))
    return replace(embeddings, values=values, offsets=offsets)
