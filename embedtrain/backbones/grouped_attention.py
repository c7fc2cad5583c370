"""Exact attention over ragged texts on a CPU, with dropout, in little memory.

Texts come sorted by length, so neighbours of equal length form a group that is a plain `[texts * heads, L, d]` batch
with no padding and no mask. Each group is worked off in tiles of scores that stay in the cache:

    1. P = softmax(scale Q K' + bias)     one tile of [heads, L, L], never the whole; most models have no bias
    2. O = (P * keep / (1 - p)) V         `keep`: the dropout mask, one byte per score, all that is saved
    3. backward: P again from Q and K, then with D = rowsum(dO * O)
           dV = (P * keep)' dO / (1 - p)      dS = P * (dP - D)      dQ = scale dS K      dK = scale dS' Q

One autograd node covers all groups: slicing inside autograd would write a gradient of the full size for every group.
torch's own fused kernel takes no dropout on a CPU and falls back to one that keeps three score matrices per layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.backbones.position_bias import PositionBias
from embedtrain.backbones.ragged import RaggedLayout, Visibility
from embedtrain.backbones.random_bits import keep_mask

_TILE = 1 << 18  # scores in work at once: 1 MiB in fp32, which stays in the cache of a core


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: RaggedLayout,
    visibility: Visibility,
    scale: float,
    dropout: float = 0.0,
    bias: PositionBias | None = None,
) -> Tensor:
    """Attention of each text to itself: query `[heads, S, d]`, key and value `[kv_heads, S, d]` -> `[S, heads, d]`.

    Computed in fp32 (fp64 for fp64 inputs) whatever the inputs are. `heads` is a multiple of `kv_heads`.
    """
    return _GroupedAttention.apply(query, key, value, layout, visibility, scale, dropout, bias)


class _GroupedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, layout, visibility, scale, dropout, bias):
        heads, tokens, _ = query.shape
        out = query.new_empty(tokens, heads, value.shape[-1])
        keeps: list[Tensor] = []
        rescale = 1.0
        with torch.autocast("cpu", enabled=False):
            for number, group in enumerate(layout.groups):
                q, k, v = (_gather(x, group, heads) for x in (query, key, value))
                rules = _Rules.of(layout, number, visibility, bias, q.dtype)
                o = torch.empty_like(v)
                for tile, p in _tiles(q, k, scale, rules):
                    if dropout > 0:
                        keep, rescale = keep_mask(p.shape, dropout)
                        keeps.append(keep)
                        p.mul_(keep)
                    torch.bmm(p, v[tile], out=o[tile])
                _scatter(o.mul_(rescale) if dropout > 0 else o, out, group)
        ctx.save_for_backward(query, key, value, out, *keeps)
        ctx.rest = layout, visibility, scale, rescale, bias
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, *keeps = ctx.saved_tensors
        layout, visibility, scale, rescale, bias = ctx.rest
        heads = query.shape[0]
        gradients = [x.new_empty(x.shape[1], x.shape[0], x.shape[2]) for x in (query, key, value)]
        keep_of_tile = iter(keeps)
        with torch.autocast("cpu", enabled=False):
            for number, group in enumerate(layout.groups):
                q, k, v = (_gather(x, group, heads) for x in (query, key, value))
                do, o = (_gather(x.transpose(0, 1), group, heads) for x in (grad, out))
                delta = (do * o).sum(-1, keepdim=True)
                do.mul_(rescale)  # the factor of the kept probabilities, once for dV and dP
                dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
                ds_buffer = _buffer(q)
                for tile, p in _tiles(q, k, scale, _Rules.of(layout, number, visibility, bias, q.dtype)):
                    ds = torch.bmm(do[tile], v[tile].transpose(1, 2), out=ds_buffer[: p.shape[0]])
                    if keeps:
                        keep = next(keep_of_tile)
                        ds.mul_(keep)
                        torch.bmm((p * keep).transpose(1, 2), do[tile], out=dv[tile])
                    else:
                        torch.bmm(p.transpose(1, 2), do[tile], out=dv[tile])
                    ds.sub_(delta[tile]).mul_(p)
                    torch.bmm(ds, k[tile], out=dq[tile])
                    torch.bmm(ds.transpose(1, 2), q[tile], out=dk[tile])
                for part, gradient in zip((dq.mul_(scale), dk.mul_(scale), dv), gradients, strict=True):
                    _scatter(part, gradient, group)
        dq, dk, dv = (gradient.transpose(0, 1) for gradient in gradients)
        return dq, dk, dv, None, None, None, None, None


def _gather(x: Tensor, group: tuple[int, int, int], heads: int) -> Tensor:
    """The group's part of `[x_heads, S, d]` as contiguous `[texts * heads, L, d]`; fewer heads are repeated."""
    first, texts, length = group
    part = x[:, first : first + texts * length].unflatten(1, (texts, length)).transpose(0, 1)
    if part.dtype in (torch.bfloat16, torch.float16):
        part = part.float()
    if x.shape[0] != heads:
        part = part.repeat_interleave(heads // x.shape[0], dim=1)
    return part.reshape(texts * heads, length, -1).contiguous()


def _scatter(part: Tensor, out: Tensor, group: tuple[int, int, int]) -> None:
    """The reverse: `[texts * heads, L, d]` into the group's rows of `[S, out_heads, d]`; repeated heads add up."""
    first, texts, length = group
    part = part.view(texts, out.shape[1], -1, length, part.shape[-1])
    part = part[:, :, 0] if part.shape[2] == 1 else part.sum(2)
    out[first : first + texts * length].unflatten(0, (texts, length)).copy_(part.transpose(1, 2))


@dataclass(frozen=True)
class _Rules:
    """What happens to the scores of one group before the softmax."""

    forbidden: Tensor | None  # [L, L], true where a query may not see a key
    pattern: Tensor | None  # [L, L], added
    factors: Tensor | None  # [texts * heads], by which the pattern is multiplied first
    unseen: Tensor | None  # [texts, 1, L], true for a key that no query of its text may see

    @staticmethod
    def of(
        layout: RaggedLayout, number: int, visibility: Visibility, bias: PositionBias | None, dtype: torch.dtype
    ) -> _Rules:
        """Of the group `number` of the layout."""
        _, texts, length = layout.groups[number]
        cpu = torch.device("cpu")
        allowed = visibility.mask(length, cpu)
        factors = None if bias is None else bias.factors
        return _Rules(
            forbidden=None if allowed is None else ~allowed,
            pattern=None if bias is None else bias.pattern(length, cpu, dtype),
            factors=None if factors is None else torch.tensor(factors, dtype=dtype).repeat(texts),
            unseen=_unseen(layout, number),
        )

    def put_bias(self, scores: Tensor, tile: slice) -> None:
        """Overwrites `scores` [b, L, L] with the bias of the heads in `tile`, which has to be there."""
        assert self.pattern is not None
        if self.factors is None:
            scores.copy_(self.pattern)
        else:
            torch.mul(self.pattern, self.factors[tile, None, None], out=scores)


def _unseen(layout: RaggedLayout, number: int) -> Tensor | None:
    if layout.seen is None:
        return None
    before = sum(texts for _, texts, _ in layout.groups[:number])
    _, texts, length = layout.groups[number]
    seen = torch.tensor(layout.seen[before : before + texts])
    return None if bool((seen == length).all()) else torch.arange(length) >= seen[:, None, None]


def _buffer(q: Tensor) -> Tensor:
    batch, length, _ = q.shape
    return q.new_empty(min(batch, max(1, _TILE // (length * length))), length, length)


def _tiles(q: Tensor, k: Tensor, scale: float, rules: _Rules) -> Iterator[tuple[slice, Tensor]]:
    """Probabilities [b, L, L] of a few heads at a time. The buffer is used again for the next tile."""
    buffer = _buffer(q)
    step = buffer.shape[0]
    for start in range(0, q.shape[0], step):
        tile = slice(start, start + step)
        p = buffer[: q[tile].shape[0]]
        if rules.pattern is not None:
            rules.put_bias(p, tile)
        kept = 0 if rules.pattern is None else 1
        torch.baddbmm(p, q[tile], k[tile].transpose(1, 2), beta=kept, alpha=scale, out=p)
        if rules.forbidden is not None:
            p.masked_fill_(rules.forbidden, float("-inf"))
        if rules.unseen is not None:
            heads = q.shape[0] // rules.unseen.shape[0]
            p.masked_fill_(rules.unseen[torch.arange(q.shape[0])[tile] // heads], float("-inf"))
        torch.softmax(p, -1, out=p)
        if rules.unseen is not None and rules.forbidden is not None:
            p.nan_to_num_(0.0)  # a query whose window holds no key that is seen
        yield tile, p
