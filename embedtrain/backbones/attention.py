"""The attention that transformers calls for us: ragged texts, no padding, on every device.

`register()` puts two functions under the name `KERNEL` into transformers' registries. A model set to that name then

    1. asks for the mask of each kind of layer (full, sliding). Instead of making one we ask the mask function what it
       lets a query see and hand the layers that `Visibility`: the model's own word, whatever its family;
    2. calls `ragged_attention` in each layer with flat queries, keys and values of all texts.

A padded model whose attention has a bias by position runs transformers' own mask through `biased_attention`, under `BIASED`.

Kernels by device: CPU -> `grouped_attention`; CUDA -> `torch.nn.attention.varlen` (flash attention, fp16 and bf16, no
dropout, no bias by position, all tokens seen); everything else -> `padded_attention`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from embedtrain.backbones.grouped_attention import grouped_attention
from embedtrain.backbones.padded_attention import padded_attention, sees_nothing
from embedtrain.backbones.position_bias import Alibi, PositionBias, padded_bias
from embedtrain.backbones.ragged import RaggedLayout, Visibility

log = logging.getLogger(__name__)

_varlen: ModuleType | None
try:
    _varlen = import_module("torch.nn.attention.varlen")
except ImportError:  # torch < 2.10
    _varlen = None

KERNEL = "embedtrain_ragged"
BIASED = "embedtrain_biased"

# What a family may pass to its attention beyond q, k, v that would change the result, and that no kernel here has.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


class UnsupportedByRaggedKernel(Exception):
    """This model needs something that ragged attention does not have. Callers fall back to padding and say so."""


def register() -> None:
    AttentionInterface.register(KERNEL, ragged_attention)
    AttentionMaskInterface.register(KERNEL, _visibility_instead_of_mask)
    AttentionInterface.register(BIASED, biased_attention)
    AttentionMaskInterface.register(BIASED, sdpa_mask)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Visibility | None,
    *,
    layout: RaggedLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    bias: PositionBias | None = None,
    alibi_slopes: tuple[float, ...] | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query `[1, heads, S, d]`, key and value `[1, kv_heads, S, d]` -> `[1, S, heads, d]`.

    bias: of the backbone (`soft_mask.py`). alibi_slopes: of each head, from a model that has them (`alibi_bert.py`).
    """
    for name in _UNSUPPORTED:
        if extra.get(name) is not None:
            raise UnsupportedByRaggedKernel(f"its attention uses {name}")
    if layout is None:
        raise UnsupportedByRaggedKernel("it does not pass keyword arguments on to its attention")
    if not isinstance(attention_mask, Visibility):
        raise UnsupportedByRaggedKernel("it makes its attention mask by itself")
    if alibi_slopes is not None:
        bias = Alibi(alibi_slopes)
    kernel = _kernel_for(query, dropout, bias, layout)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    options = {"layout": layout, "visibility": attention_mask, "scale": scale, "dropout": dropout, "bias": bias}
    out = kernel(query[0], key[0], value[0], **options)
    return out.unsqueeze(0), None


def biased_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: RaggedLayout,
    bias: PositionBias | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """The same signature for padded texts, padding on the right: query `[N, heads, T, d]` -> `[N, T, heads, d]`.

    attention_mask: true where a query sees a key, [N, 1, T, T]; None: everywhere.
    """
    mask = attention_mask
    if bias is not None:
        mask = padded_bias(bias, layout, query.device, query.dtype)
        if attention_mask is not None:
            mask = mask.masked_fill(~(attention_mask | sees_nothing(attention_mask)), float("-inf"))
    if query.shape[1] != key.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _kernel_for(
    query: Tensor, dropout: float, bias: PositionBias | None, layout: RaggedLayout
) -> Callable[..., Tensor]:
    if query.device.type == "cpu":
        return grouped_attention
    half = query.dtype in (torch.float16, torch.bfloat16)
    width = query.shape[-1]
    if query.device.type == "cuda" and _varlen and half and dropout == 0 and width % 8 == 0 and width <= 256:
        if bias is None and layout.seen is None:
            return _varlen_attention
        _tell_of("a bias by position" if layout.seen is None else "tokens that no token sees")
    return padded_attention


@cache
def _tell_of(what: str) -> None:
    log.info("attention with %s is padded on CUDA: its variable-length kernel has none", what)


def _varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: RaggedLayout,
    visibility: Visibility,
    scale: float,
    dropout: float,
    bias: PositionBias | None,
) -> Tensor:
    """Flash attention over texts of any lengths, as torch ships it. Query `[heads, S, d]` -> `[S, heads, d]`."""
    assert dropout == 0, "varlen_attn has no dropout"
    assert bias is None, "varlen_attn has no bias"
    assert layout.seen is None, "varlen_attn has one length of queries and keys here"
    cumulative = layout.cumulative(query.device)
    window = tuple(-1 if limit is None else limit for limit in (visibility.left, visibility.right))
    query, key, value = (x.transpose(0, 1).contiguous() for x in (query, key, value))
    grouped = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    assert _varlen is not None
    return _varlen.varlen_attn(
        query, key, value, cumulative, cumulative, layout.longest, layout.longest,
        scale=scale, window_size=window, **grouped,
    )  # fmt: skip


def _visibility_instead_of_mask(*, kv_length: int, mask_function: Callable[..., Any], **_: Any) -> Visibility:
    """transformers' mask signature: what a query far inside a text may see, read off the mask function itself."""
    query = kv_length  # with as many keys before it as the batch has tokens, and as many after it
    zero = torch.tensor(0)
    keys = torch.arange(2 * query + 1)
    allowed = torch.as_tensor(mask_function(zero, zero, torch.tensor(query), keys)).broadcast_to(keys.shape)
    seen = allowed.nonzero().flatten()
    if seen.numel() == 0 or not bool(allowed[query]) or int(seen[-1] - seen[0]) + 1 != seen.numel():
        raise UnsupportedByRaggedKernel("what its queries may see is not one window around them")
    left, right = query - int(seen[0]), int(seen[-1]) - query
    return Visibility(None if left == query else left, None if right == query else right)
