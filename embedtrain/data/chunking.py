"""Length-sorted chunks under a token budget: what bounds the memory of a forward pass, and never changes its result."""

from __future__ import annotations

import torch
from torch import Tensor

from embedtrain.errors import ConfigError


def chunks(lengths: Tensor, chunk_tokens: int) -> list[Tensor]:
    """Indices of the texts of each chunk. Longest texts first, so that a budget which is too large fails at once.

    `lengths` [N] are tokens; a chunk holds at most `chunk_tokens` of them, or one text that alone is longer. Texts of
    equal length keep their order, so the same lengths always give the same chunks.

    >>> [c.tolist() for c in chunks(torch.tensor([3, 9, 4, 3]), 7)]
    [[1], [2, 0], [3]]
    """
    if chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens: expected at least 1 token, got {chunk_tokens}. A usual value is 8192.")
    order = torch.argsort(lengths, descending=True, stable=True)
    ends = torch.cumsum(lengths[order], 0)  # tokens up to and with each text
    result: list[Tensor] = []
    start, used = 0, 0
    while start < order.numel():
        stop = int(torch.searchsorted(ends, used + chunk_tokens, right=True))
        stop = max(stop, start + 1)
        result.append(order[start:stop])
        start, used = stop, int(ends[stop - 1])
    return result


def divided(pieces: list[Tensor], count: int) -> list[Tensor]:
    """The same texts in `count` chunks, where there are fewer: the fullest are halved. At most one chunk for each text.

    >>> [c.tolist() for c in divided([torch.tensor([1]), torch.tensor([2, 0, 3])], 3)]
    [[1], [2], [0, 3]]
    """
    pieces = list(pieces)
    while len(pieces) < count:
        fullest = max(range(len(pieces)), key=lambda number: pieces[number].numel())
        texts = pieces[fullest]
        if texts.numel() < 2:
            break
        half = texts.numel() // 2
        pieces[fullest : fullest + 1] = [texts[:half], texts[half:]]
    return pieces
