"""Attention over ragged texts where no variable-length kernel fits: padded for the length of this one operation.

Used on accelerators for fp32, and for attention with dropout or a bias by position, which `varlen_attn` does not have.
Everything around it stays unpadded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from embedtrain.backbones.position_bias import PositionBias, padded_bias
from embedtrain.backbones.ragged import RaggedLayout, Visibility


def sees_nothing(allowed: Tensor) -> Tensor:
    """Of `allowed` [.., T, T], query by key, each query that sees no key, as seeing itself.

    Its row would be NaN, and NaN times a zero gradient is NaN. Such are queries of padding beside a window.
    """
    itself = torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
    return itself & ~allowed.any(-1, keepdim=True)


def padded_attention(
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
    """Attention of each text to itself: query `[heads, S, d]`, key and value `[kv_heads, S, d]` -> `[S, heads, d]`."""
    device = query.device
    lengths = torch.tensor(layout.lengths, device=device)
    position = layout.positions(device)
    text = torch.repeat_interleave(torch.arange(len(layout.lengths), device=device), lengths)
    longest = layout.longest

    allowed = layout.keys(device)[:, None, :].expand(-1, longest, -1)  # [N, T, T]
    within = visibility.mask(longest, device)
    if within is not None:
        allowed = allowed & within
    blind = sees_nothing(allowed)
    allowed = allowed | blind

    mask = allowed[:, None]  # [N, 1, T, T]; with a bias [N, heads or 1, T, T], numbers
    if bias is not None:
        mask = padded_bias(bias, layout, device, query.dtype).masked_fill(~mask, float("-inf"))

    def pad(x: Tensor) -> Tensor:  # [heads, S, d] -> [N, heads, T, d]
        padded = x.new_zeros(len(layout.lengths), longest, x.shape[0], x.shape[2])
        return padded.index_put((text, position), x.transpose(0, 1)).transpose(1, 2)

    if query.shape[0] != key.shape[0]:  # with a mask, the memory-saving kernel wants as many heads of each
        key, value = (x.repeat_interleave(query.shape[0] // x.shape[0], dim=0) for x in (key, value))
    out = F.scaled_dot_product_attention(
        pad(query),
        pad(key),
        pad(value),
        attn_mask=mask,
        dropout_p=dropout,
        scale=scale,
    )
    if layout.seen is not None:
        out = out.masked_fill(blind.any(-1)[:, None, :, None], 0.0)
    return out.transpose(1, 2)[text, position]
