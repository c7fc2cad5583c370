"""Which documents an encoder reads in front of each text, where it reads some: a sample of a batch or of a corpus."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from embedtrain.types import RaggedTokens


def choose(count: int, wanted: int, *, seed: int) -> Tensor:
    """`wanted` of `count` documents at random, as a function of the seed [wanted]. Where there are fewer, all come again in turn.

    >>> sorted(choose(2, 5, seed=0).tolist()), sorted(choose(4, 4, seed=0).tolist())
    ([0, 0, 0, 1, 1], [0, 1, 2, 3])
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order.repeat(-(-wanted // count))[:wanted]


def undivided(tokens: RaggedTokens) -> RaggedTokens:
    """The same texts, each with one span: all of it, prompt and chunks alike."""
    spans = torch.stack([tokens.offsets[:-1], tokens.offsets[1:]], dim=1)
    return replace(tokens, spans=spans, span_offsets=None)
