"""The gate of the ragged path: its hidden states must be those of the plain padded model, or it is not used."""

from __future__ import annotations

import torch
from torch import Tensor

from embedtrain.types import RaggedTokens

# Lengths that mix groups of one and of several texts; the longest leaves small sliding windows behind.
_LENGTHS = (24, 24, 11, 11, 11, 3, 1)


def parity_tokens(vocabulary: int, *, avoid: int | None) -> RaggedTokens:
    """A few made-up texts. `avoid` is the pad id, whose meaning inside a text differs between model families."""
    texts = []
    for text, length in enumerate(_LENGTHS):
        ids = [(31 * text + 17 * i + 11) % vocabulary for i in range(length)]
        texts.append([(i + 1) % vocabulary if i == avoid else i for i in ids])
    return RaggedTokens.from_lists(texts)


def disagreement(states: Tensor, reference: Tensor) -> float:
    """The largest difference between two [S, H], as a share of the largest reference value."""
    difference = (states.float() - reference.float()).abs().max() / reference.float().abs().max()
    return float(difference)


def tolerance(dtype: torch.dtype) -> float:
    """How much of `disagreement` rounding explains."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 4e-2
