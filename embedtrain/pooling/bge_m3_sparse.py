"""The sparse head of BGE-M3 (arXiv:2402.03216, section 3.2): how much each word of a text matters, and no other word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedtrain.pooling.segments import pooled_tokens
from embedtrain.types import RaggedTokens


class BgeM3SparsePooling(nn.Module):
    """w_j = max over tokens i that are word j of ReLU(a h_i + b); 0 for the special tokens. Scored by inner products.

    Unlike SPLADE it weighs the words of the text and adds none. The released code zeroes CLS, EOS, PAD and UNK; the mask
    token, which no text has, is zeroed here too.

    hidden_size, vocab_size, special_ids: of the backbone and its tokenizer; supplied by the program.
    """

    as_is = True

    def __init__(self, *, hidden_size: int, vocab_size: int, special_ids: Sequence[int]) -> None:
        super().__init__()
        self.output_dim = vocab_size
        self.linear = nn.Linear(hidden_size, 1)
        self.register_buffer("_special", torch.tensor(list(special_ids), dtype=torch.int64), persistent=False)

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        """Weights [N, V], none negative."""
        flat, text = (index.to(hidden.device, non_blocking=True) for index in pooled_tokens(tokens))
        words = tokens.ids[flat]
        weights = self.linear(hidden[flat].float()).squeeze(1).float().relu()
        weights = weights.masked_fill(torch.isin(words, self._special), 0.0)  # type: ignore[arg-type]
        empty = torch.zeros(len(tokens) * self.output_dim, dtype=weights.dtype, device=weights.device)
        return empty.scatter_reduce(0, text * self.output_dim + words, weights, "amax").unflatten(0, (len(tokens), -1))
