"""The ranks of a run. With sharding.py, the only file that knows torch.distributed.

The scale of the gradient lives here, and it is one sentence: *everything is a share, and shares are summed*. Each
rank's loss L_r is its share of the mean over the global batch (see `LossOutput`), L = sum of L_r. `gather_rows` is an
all-gather whose backward adds up what all ranks want of this rank's embeddings, so each rank holds dL/d(its own
embeddings), exactly; what it then sends through its encoder is its share of dL/d(parameters), and `sum_gradients` adds
those. No factor of the number of ranks appears anywhere, so none can be forgotten or applied twice.

`sum_gradients` runs once per step, after the last chunk. A data-parallel wrapper would overlap it with the backward of
that one chunk only (chunks accumulate into the same gradients), and would bring its own rules about unused parameters,
repeated forwards and checkpointing. Gradients of sharded parameters (sharding.py) are summed in their backward already.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from embedtrain.types import NO_LABEL, NO_SOURCE, Embeddings, Relation

T = TypeVar("T")


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process among all; the launcher's word counts before the process group exists."""
    return dist.get_rank() if is_distributed() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def shutdown() -> None:
    """Leave the process group, so that the launcher sees a clean end."""
    if is_distributed():
        dist.destroy_process_group()


def broadcast_object(value: T) -> T:
    """Rank 0's value on every rank."""
    if not is_distributed():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank. For small things: names, counts, metrics."""
    if not is_distributed():
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over ranks, detached, in a new tensor."""
    if not is_distributed():
        return value.detach().clone()
    total = _sendable(value.detach().clone())
    dist.all_reduce(total)
    return total.to(value.device)


def largest(number: int) -> int:
    """The largest of all ranks' numbers."""
    return int(gather_plain(torch.tensor([number]), [1] * world_size()).max())


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one: for stop signals and failures that all must see at the same step."""
    return bool(sum_over_ranks(torch.tensor(int(flag))).item())


def sum_gradients(parameters: Iterable[torch.nn.Parameter], *, bucket_bytes: int = 64 * 2**20) -> None:
    """Replace each gradient by its sum over ranks, in flat buckets of one dtype (one collective per bucket).

    A parameter without a gradient on this rank takes part with zeros, since another rank may have one. Gradients of sharded
    parameters are sums already.
    """
    if not is_distributed():
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grad = parameter.grad
        if isinstance(grad, DTensor):
            continue
        if bucket and (size + grad.nbytes > bucket_bytes or grad.dtype != bucket[0].dtype):
            _sum_bucket(bucket)
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.nbytes
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(bucket: list[Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in bucket])
    dist.all_reduce(flat)
    for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
        grad.copy_(part.view_as(grad))


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Rank 0's values in every rank's tensors, in place: all ranks start from the same weights."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all ranks, rank by rank: [counts[rank], ...] -> [sum(counts), ...], with gradient.

    `counts` are the rows of each rank (they may differ). Backward: the gradients that all ranks have for this rank's
    rows, added up.
    """
    if not is_distributed():
        return rows
    return _GatherRows.apply(rows, tuple(counts))


def gather_plain(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """`gather_rows` without gradient, for ids and flags."""
    if not is_distributed():
        return rows
    return _all_gather(rows.detach(), tuple(counts))


def _all_gather(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    # Collectives want equal shapes: rows are filled up to the longest rank and the filler is cut off again.
    longest = max(counts)
    sent = _sendable(rows.to(torch.uint8) if rows.dtype == torch.bool else rows)
    filled = sent.new_zeros((longest, *sent.shape[1:]))
    filled[: sent.shape[0]] = sent
    parts = [torch.empty_like(filled) for _ in counts]
    dist.all_gather(parts, filled)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).to(rows)


def _sendable(tensor: Tensor) -> Tensor:
    """On the GPU where the ranks talk through NCCL, which knows no other place."""
    return tensor.cuda() if dist.get_backend() == "nccl" and not tensor.is_cuda else tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.start = sum(counts[: dist.get_rank()])
        ctx.count = counts[dist.get_rank()]
        return _all_gather(rows, counts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count], None


def gather_embeddings(embeddings: Embeddings, counts: Sequence[int]) -> Embeddings:
    """Texts of all ranks, rank by rank, with gradient; views and token vectors with them. `counts`: texts of each rank."""
    if not is_distributed():
        return embeddings
    offsets, rows = None, list(counts)
    if embeddings.offsets is not None:
        lengths = gather_plain(embeddings.offsets.diff(), counts)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        rows = [int(part.sum()) for part in lengths.split(list(counts))]
    return Embeddings(
        gather_rows(embeddings.values, rows),
        embeddings.normalized,
        offsets,
        # In one order: a collective of one rank must meet the same collective of the others.
        {name: gather_embeddings(embeddings.views[name], counts) for name in sorted(embeddings.views)},
    )


def gather_relation(relation: Relation) -> tuple[Relation, list[int], list[int]]:
    """The relation of all ranks' queries and documents, and how many of each every rank brought.

    Rank r's `owner` points into its own queries; after the gather it points into everyone's. Scores and labels
    that only some ranks have are filled up with NaN and NO_LABEL.
    """
    if not is_distributed():
        return relation, [relation.num_queries], [relation.num_documents]
    optional = (relation.scores, relation.labels, relation.sources)
    own = (relation.num_queries, relation.num_documents, relation.known_ids.numel(), *(x is not None for x in optional))
    sizes = gather_plain(torch.tensor([own]), [1] * dist.get_world_size())  # [W, 6]
    queries, documents, known, scored, labelled, sourced = sizes.T.tolist()
    first_query = sum(queries[: rank()])
    first_known = sum(known[: rank()])
    offsets = gather_plain(relation.known_offsets[:-1] + first_known, queries)

    def some(
        values: Tensor | None, like: Tensor, filler: float, counts: list[int], present: list[int]
    ) -> Tensor | None:
        if not any(present):
            return None
        return gather_plain(torch.full_like(like, filler) if values is None else values, counts)

    scores_like = relation.document_ids.float()
    return (
        Relation(
            query_ids=gather_plain(relation.query_ids, queries),
            document_ids=gather_plain(relation.document_ids, documents),
            owner=gather_plain(relation.owner + first_query, documents),
            is_positive=gather_plain(relation.is_positive, documents),
            known_ids=gather_plain(relation.known_ids, known),
            known_offsets=torch.cat([offsets, offsets.new_tensor([sum(known)])]),
            scores=some(relation.scores, scores_like, math.nan, documents, scored),
            labels=some(relation.labels, relation.query_ids, NO_LABEL, queries, labelled),
            sources=some(relation.sources, relation.query_ids, NO_SOURCE, queries, sourced),
        ),
        queries,
        documents,
    )
