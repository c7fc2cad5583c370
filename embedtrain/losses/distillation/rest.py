"""All documents of the batch but a query's own, as one number: their log-sum-exp.

With the query's own documents one by one (candidates.py) it is all that a softmax over the batch is made of, where only those
have targets. The others are streamed in blocks of queries, as in contrast.py, and once more in the backward, since what
becomes of the number is not known before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from embedtrain.losses.contrast import ACCELERATOR_TILE_BYTES, CPU_TILE_BYTES
from embedtrain.losses.distillation.candidates import ABSENT, QueryTokens
from embedtrain.losses.relation import RelationReader
from embedtrain.losses.similarity import Space, space_of
from embedtrain.types import EmbeddingBatch


def rest_of_batch(
    batch: EmbeddingBatch,
    *,
    temperature: float,
    views: Mapping[str, float],
    query_tokens: QueryTokens = "sum",
    tile_bytes: int | None = None,
) -> Tensor:
    """log-sum-exp of the logits of each of this rank's queries to what others brought, [R]; `ABSENT` where that is nothing.

    Left out: copies of what the query brought itself, and what else is known to answer it. Cost: four products of all queries
    with all documents, memory linear in the batch. `tile_bytes`: as of `contrast`.
    """
    space = space_of(batch, views, query_tokens)
    device = space.inputs[0].device
    if tile_bytes is None:
        tile_bytes = CPU_TILE_BYTES if device.type == "cpu" else ACCELERATOR_TILE_BYTES
    # To the reader all that a query brought are its answers, so that they and their copies are the exceptions.
    reader = RelationReader(replace(batch.relation, is_positive=batch.relation.owner >= 0))
    with torch.autocast(device.type, enabled=False):
        return _Rest.apply(_Others(space, reader, batch.rows, 1 / temperature, tile_bytes), *space.inputs)


@dataclass(frozen=True, slots=True)
class _Others:
    """Blocks of logits with all but the others at -inf."""

    space: Space
    reader: RelationReader
    rows: slice
    scale: float
    tile_bytes: int

    def blocks(self) -> Iterator[tuple[slice, Tensor, object]]:
        """(queries, logits [R, D], what the space wants to know again)."""
        start, stop, _ = self.rows.indices(self.space.count["q"])
        width = self.space.count["d"]
        size = max(1, int(self.tile_bytes / (self.space.bytes_per_pair() * max(1, width))))
        scale = self.space.inputs[0].new_tensor(self.scale)
        for first in range(start, stop, size):
            queries = slice(first, min(first + size, stop))
            logits, saved = self.space.tile("q2d", queries, None, scale)
            row, column = self.reader.exceptions("q2d", torch.arange(queries.start, queries.stop))
            logits.view(-1).index_fill_(0, (row * width + column).to(logits.device), -math.inf)
            yield queries, logits, saved


class _Rest(torch.autograd.Function):
    @staticmethod
    def forward(ctx, others: _Others, *inputs: Tensor) -> Tensor:
        parts = [logits.logsumexp(1) for _, logits, _ in others.blocks()]
        rest = torch.cat([inputs[0].new_zeros(0), *parts]).nan_to_num(neginf=ABSENT)
        ctx.others = others
        ctx.save_for_backward(rest)
        return rest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        (rest,) = ctx.saved_tensors
        others, first = ctx.others, 0
        for queries, logits, saved in others.blocks():
            part = slice(first, first + len(logits))
            weights = logits.sub_(rest[part, None]).exp_()  # a row of -inf alone stays 0
            others.space.tile_backward("q2d", queries, None, saved, weights, gradient[part] * others.scale)
            first = part.stop
        return None, *others.space.gradients()
