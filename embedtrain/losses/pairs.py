"""Similarities of single (query, document) pairs in any space, with gradient: for losses that never look at Q x D."""

from __future__ import annotations

import torch
from torch import Tensor

from embedtrain.losses.similarity import Space


def pair_similarities(space: Space, queries: Tensor, documents: Tensor) -> Tensor:
    """Of queries[p] to documents[p], numbers on the CPU, [P]. For one backward: a space adds its gradients up."""
    return _Pairs.apply(space, queries, documents, *space.inputs)


class _Pairs(torch.autograd.Function):
    """`Space.pairs` with the gradient that the space knows."""

    @staticmethod
    def forward(ctx, space: Space, queries: Tensor, documents: Tensor, *inputs: Tensor) -> Tensor:
        ctx.space, ctx.pairs = space, (queries, documents)
        return space.pairs(queries, documents)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        ctx.space.pairs_backward(*ctx.pairs, gradient)
        return None, None, None, *ctx.space.gradients()
