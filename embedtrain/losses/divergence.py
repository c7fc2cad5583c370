"""Divergence between two softmaxes over all documents of the batch, in memory linear in the batch.

For each query a *target* p over all documents is known (a teacher's, an ensemble's), and one or several *students* q, each
the softmax of the logits of a space. A block of queries sees its whole distributions, so as in contrast.py the
gradients come in the same pass, and autograd only scales them:

    1. logits of the block's queries to all documents, from each student's space
    2. the target: log p [R, D], which may read those logits
    3. the divergence of each row, and its gradient by the logits
    4. gradients of the embeddings, back through each space

Cost: for each student three products of all queries with all documents, and what the target takes. No Q x D matrix outlives
a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.losses.attach import attach
from embedtrain.losses.contrast import ACCELERATOR_TILE_BYTES, CPU_TILE_BYTES
from embedtrain.losses.similarity import Space


@dataclass(frozen=True, slots=True)
class Block:
    """Some queries against all documents."""

    queries: slice
    logits: Mapping[str, Tensor]  # [R, D] of each student


Target = Callable[[Block], Tensor]  # log p [R, D]: each row's exponentials add up to 1

# (log p, log q) of [R, D] -> the divergence of each row [R], and its gradient by the logits of q [R, D].
Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def divergences(
    students: Mapping[str, Space],
    *,
    rows: slice,
    scale: float,
    target: Target,
    divergence: Divergence,
    tile_bytes: int | None = None,
) -> dict[str, Tensor]:
    """By student, the sum over the queries `rows` of the divergence of its softmax from the target, with gradient.

    `scale`: 1 / temperature of the students. `tile_bytes`: memory for logits, by device if None; never changes the result.
    """
    inputs = [x for space in students.values() for x in space.inputs]
    device, kind = inputs[0].device, inputs[0].dtype
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if tile_bytes is None:
        tile_bytes = CPU_TILE_BYTES if device.type == "cpu" else ACCELERATOR_TILE_BYTES
    values = {name: torch.zeros((), dtype=kind, device=device) for name in students}
    factor = torch.tensor(scale, dtype=kind, device=device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for queries in _blocks(students, rows, tile_bytes):
            tiles = {name: space.tile("q2d", queries, None, factor) for name, space in students.items()}
            log_p = target(Block(queries, {name: logits for name, (logits, _) in tiles.items()}))
            for name, (logits, saved) in tiles.items():
                log_q = logits.log_softmax(1)
                of_rows, gradient = divergence(log_p, log_q)
                values[name] += of_rows.sum()
                if with_gradient:
                    students[name].tile_backward("q2d", queries, None, saved, gradient, factor.expand(len(gradient)))
    if not with_gradient:
        return values
    return {name: attach(values[name], space.gradients(), *space.inputs) for name, space in students.items()}


def _blocks(students: Mapping[str, Space], rows: slice, tile_bytes: int) -> Iterator[slice]:
    spaces = list(students.values())
    start, stop, _ = rows.indices(spaces[0].count["q"])
    # Beside what the spaces keep: target, log q, p, q and the gradient, one number each.
    per_pair = sum(space.bytes_per_pair() for space in spaces) + 5 * spaces[0].inputs[0].element_size()
    size = max(1, int(tile_bytes / (per_pair * max(1, spaces[0].count["d"]))))
    yield from (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def cross_entropy(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """- sum of p log q: KL(p || q) and the entropy of p, which no student changes."""
    p = log_p.exp()
    return -(p * log_q).sum(1), log_q.exp() - p


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q): q covers all that p has."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(1), log_q.exp() - p


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p): q keeps to where p has most."""
    return _mean_of(log_q, log_q - log_p)


def symmetric_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of both."""
    there, back = forward_kl(log_p, log_q), reverse_kl(log_p, log_q)
    return (there[0] + back[0]) / 2, (there[1] + back[1]) / 2


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of KL(p || m) and KL(q || m), m = (p + q) / 2: at most log 2."""
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    value, gradient = _mean_of(log_q, log_q - middle)  # what q does to m cancels
    return ((log_p.exp() * (log_p - middle)).sum(1) + value) / 2, gradient / 2


def _mean_of(log_q: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of `a` under q, [R], and q * (a - mean): its gradient by the logits where a has log q in it once."""
    q = log_q.exp()
    mean = (q * a).sum(1)
    return mean, q * (a - mean[:, None])


DIVERGENCES: dict[str, Divergence] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "symmetric": symmetric_kl,
    "js": jensen_shannon,
}
