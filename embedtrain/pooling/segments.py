"""Sums over the pooled tokens of each text: the one primitive of the averaging heads.

Where texts have several spans (late chunking), "text" means span here: M spans of N texts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embedtrain.types import RaggedTokens


def pooled_tokens(tokens: RaggedTokens) -> tuple[Tensor, Tensor]:
    """(flat positions [M] of the tokens inside the spans, the text [M] that each belongs to), both on the CPU."""
    counts = tokens.spans[:, 1] - tokens.spans[:, 0]
    text = torch.repeat_interleave(torch.arange(len(tokens.spans)), counts)
    first = torch.cumsum(counts, 0) - counts  # position of each text's first pooled token among the M
    return torch.arange(text.numel()) - first[text] + tokens.spans[text, 0], text


def segment_sum(hidden: Tensor, tokens: RaggedTokens, weights: Tensor | None = None) -> Tensor:
    """Sum over each text's span in fp32, [N, H]. `weights` [M], one for each pooled token, default to 1."""
    flat, text = pooled_tokens(tokens)
    device = hidden.device
    if flat.numel() < hidden.shape[0]:
        hidden = hidden[flat.to(device, non_blocking=True)]
    states = hidden.float()
    if weights is not None:
        states = states * weights.to(device, non_blocking=True)[:, None]
    total = torch.zeros(len(tokens.spans), states.shape[1], dtype=states.dtype, device=device)
    return total.index_add(0, text.to(device, non_blocking=True), states)


def span_lengths(tokens: RaggedTokens, device: torch.device) -> Tensor:
    """Pooled tokens of each text, fp32 [N, 1]."""
    return (tokens.spans[:, 1] - tokens.spans[:, 0]).float().to(device, non_blocking=True)[:, None]
