"""Cross-entropy over the vocabulary, in little memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_ROWS = 1024  # predictions whose logits exist at a time: 125 MB in fp32 for a vocabulary of 30,522


def prediction_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log p(target) over M predictions, from states [M, H] and ids [M]; at least fp32.

    Beyond 1,024 predictions logits are computed again in the backward, so that never more than 1,024 x V of them exist.
    """
    if targets.numel() <= _ROWS:
        return _loss(head, hidden, targets)
    parts = zip(hidden.split(_ROWS), targets.split(_ROWS), strict=True)
    return torch.stack([checkpoint(_loss, head, h, t, use_reentrant=False) for h, t in parts]).sum()


def _loss(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(exact(head(hidden)), targets, reduction="sum")


def exact(values: Tensor) -> Tensor:
    """In fp32; fp64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
