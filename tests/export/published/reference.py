"""Slow forwards written from the published formulas, on tensors under their published names; one text, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel


def states(model: PreTrainedModel, ids: list[int], **options: object) -> Tensor:
    """Last hidden states [T, H] of one text by transformers itself."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **options).last_hidden_state[0]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + eps) * weight + bias


def cross_block(tensors: Mapping[str, Tensor], x: Tensor, context: Tensor, heads: int, residual: Tensor) -> Tensor:
    """One PreNorm cross-attention and one GEGLU layer as lucidrains' Perceiver names them; `x` [n, H] asks `context` [m, H]."""
    block, ff = "cross_attend_blocks.0.", "cross_attend_blocks.1."
    wide = tensors[f"{block}fn.to_q.weight"].shape[0]
    d = wide // heads
    keys, values = tensors[f"{block}fn.to_kv.weight"].split(wide)
    rows = []
    for i in range(len(x)):
        query = tensors[f"{block}fn.to_q.weight"] @ x[i]
        found = []
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            scores = torch.stack([query[part] @ (keys[part] @ row) / math.sqrt(d) for row in context])
            weights = scores.softmax(0)
            found.append(sum(w * (values[part] @ row) for w, row in zip(weights, context, strict=True)))
        one = tensors[f"{block}fn.to_out.weight"] @ torch.cat(found) + residual[i]
        normed = layer_norm(one, tensors[f"{ff}norm.weight"], tensors[f"{ff}norm.bias"])
        value, gate = (tensors[f"{ff}fn.net.0.weight"] @ normed + tensors[f"{ff}fn.net.0.bias"]).chunk(2)
        rows.append(tensors[f"{ff}fn.net.2.weight"] @ (value * F.gelu(gate)) + tensors[f"{ff}fn.net.2.bias"] + one)
    return torch.stack(rows)


def block_norm(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    key = f"cross_attend_blocks.0.{name}"
    return torch.stack([layer_norm(row, tensors[f"{key}.weight"], tensors[f"{key}.bias"]) for row in x])


def block_shapes(hidden: int, latents: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of the head of NV-Embed, and of Pooling and Attention."""
    block, ff = "cross_attend_blocks.0.", "cross_attend_blocks.1."
    return {
        "latents": (latents, hidden),
        f"{block}norm.weight": (hidden,),
        f"{block}norm.bias": (hidden,),
        f"{block}norm_context.weight": (hidden,),
        f"{block}norm_context.bias": (hidden,),
        f"{block}fn.to_q.weight": (inner, hidden),
        f"{block}fn.to_kv.weight": (2 * inner, hidden),
        f"{block}fn.to_out.weight": (hidden, inner),
        f"{ff}norm.weight": (hidden,),
        f"{ff}norm.bias": (hidden,),
        f"{ff}fn.net.0.weight": (8 * hidden, hidden),
        f"{ff}fn.net.0.bias": (8 * hidden,),
        f"{ff}fn.net.2.weight": (hidden, 4 * hidden),
        f"{ff}fn.net.2.bias": (hidden,),
    }
