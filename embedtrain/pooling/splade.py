"""SPLADE pooling (arXiv:2107.05720; v2: arXiv:2109.10086): a weight for every word of the vocabulary, most of them 0."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedtrain.pooling.segments import pooled_tokens
from embedtrain.types import RaggedTokens

# Logits at a time: 2 ** 25 in fp32 are 128 MiB, of 1099 tokens with BERT's vocabulary.
_LOGITS_AT_ONCE = 2**25


class SpladePooling(nn.Module):
    """w_j = max over tokens i of log(1 + ReLU(l_ij)), l_i the language model's logits of token i. Scored by inner products.

    Sum in place of max is the first version (2107.05720), max the second (2109.10086). The special tokens of
    a text take part, and those of the vocabulary may get weights, as in the authors' code. Train with a FLOPS regulariser:
    without one nothing makes the weights sparse.
    Cost: one product of all tokens with the vocabulary, twice more in the backward; S x V logits never exist.

    aggregation   max or sum
    lm_head       of the backbone; supplied by the program.
    vocab_size    of the backbone; supplied by the program.
    """

    as_is = True

    def __init__(self, *, lm_head: nn.Module, vocab_size: int, aggregation: Literal["max", "sum"] = "max") -> None:
        super().__init__()
        self.lm_head = lm_head
        self.aggregation = aggregation
        self.output_dim = vocab_size

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        """Weights [N, V], none negative."""
        flat, text = pooled_tokens(tokens)
        at_once = max(1, _LOGITS_AT_ONCE // self.output_dim)
        parts, owners = [], []
        for rows, texts in zip(flat.split(at_once), text.split(at_once), strict=True):
            owner, lengths = torch.unique_consecutive(texts, return_counts=True)
            states, lengths = hidden[rows.to(hidden.device)], lengths.to(hidden.device)
            if torch.is_grad_enabled():  # keep the slice's states, not its logits a hundred times as wide
                parts.append(checkpoint(self._weigh, states, lengths, use_reentrant=False))
            else:
                parts.append(self._weigh(states, lengths))
            owners.append(owner)
        pieces = torch.bincount(torch.cat(owners), minlength=len(tokens))
        weights = torch.cat(parts)
        # A text at the border of two slices has a part in each.
        return weights if bool((pieces == 1).all()) else self._reduce(weights, pieces.to(hidden.device))

    def _weigh(self, states: Tensor, lengths: Tensor) -> Tensor:
        logits = self.lm_head(states).float()
        if self.aggregation == "sum":
            return self._reduce(logits.relu().log1p(), lengths)
        # log(1 + ReLU(x)) never falls: the largest logit has the largest weight, so V numbers a text go through it.
        return self._reduce(logits, lengths).relu().log1p()

    def _reduce(self, rows: Tensor, lengths: Tensor) -> Tensor:
        return torch.segment_reduce(rows, self.aggregation, lengths=lengths, axis=0, unsafe=True)
