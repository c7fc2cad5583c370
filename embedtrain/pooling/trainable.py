"""Trainable pooling of Pooling and Attention (arXiv:2409.02727): a learned dictionary reads the text.

    S  = one row per layer, its mean over the text's tokens, + E_layer       or: the states of the text's tokens
    A  = attention(queries = LN(P), keys and values = LN(S))                 32 heads of 2048, no bias
    p1 = A + P
    p2 = FF(LN(p1)) + p1        FF: Linear(H, 8H), GEGLU, Linear(4H, H)
    e  = mean of p2 over the rows of P

P [768, H] is learned. The roles are those of a Perceiver and the opposite of NV-Embed's (`latent_attention.py`), where
tokens are queries. Sizes are those of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedtrain.pooling.segments import pooled_tokens, segment_sum, span_lengths
from embedtrain.types import RaggedTokens


class TrainablePooling(nn.Module):
    """Mean of learned queries after one cross-attention to the text and a feed-forward layer. Defaults: the paper's.

    Cost: each text alone costs `num_latents` tokens of a feed-forward layer.

    reads         layers: one averaged state of each layer; tokens: the token states of the last layer
    hidden_size, num_layers: of the backbone; supplied by the program.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        reads: Literal["layers", "tokens"] = "layers",
        num_latents: int = 768,
        num_heads: int = 32,
        head_dim: int = 2048,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        self.reads = reads
        self.num_latents = num_latents
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.expansion = expansion
        self.needs_layers = reads == "layers"
        inner = num_heads * head_dim
        self.latents = nn.Parameter(torch.randn(num_latents, hidden_size))
        if self.needs_layers:
            self.layer_embedding = nn.Parameter(torch.zeros(num_layers, hidden_size))
        self.latent_norm = nn.LayerNorm(hidden_size)
        self.state_norm = nn.LayerNorm(hidden_size)
        self.to_query = nn.Linear(hidden_size, inner, bias=False)
        self.to_key_value = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, hidden_size, bias=False)
        self.feedforward_norm = nn.LayerNorm(hidden_size)
        self.expand = nn.Linear(hidden_size, 2 * expansion * hidden_size)
        self.contract = nn.Linear(expansion * hidden_size, hidden_size)

    def forward(self, hidden: Tensor | Sequence[Tensor], tokens: RaggedTokens) -> Tensor:
        """`hidden`: states [S, H] of the embedding, then of layers 1 .. L; or of the last layer alone."""
        queries = self._heads(self.to_query(self.latent_norm(self.latents)))
        made = []
        for states in self._rows_by_text(hidden, tokens):
            if torch.is_grad_enabled():  # a text's queries and feed-forward are thousands of times its states
                made.append(checkpoint(self._read, queries, states, use_reentrant=False))
            else:
                made.append(self._read(queries, states))
        return torch.stack(made)

    def _rows_by_text(self, hidden: Tensor | Sequence[Tensor], tokens: RaggedTokens) -> Sequence[Tensor]:
        """What is read of each text, [n, H]."""
        if isinstance(hidden, Tensor):
            flat, _ = pooled_tokens(tokens)
            counts = (tokens.spans[:, 1] - tokens.spans[:, 0]).tolist()
            return hidden[flat.to(hidden.device)].float().split(counts)
        lengths = span_lengths(tokens, hidden[-1].device)
        means = torch.stack([segment_sum(states, tokens) / lengths for states in hidden[1:]], dim=1)
        return (means + self.layer_embedding).unbind(0)

    def _read(self, queries: Tensor, states: Tensor) -> Tensor:
        keys, values = self._heads(self.to_key_value(self.state_norm(states))).chunk(2, dim=0)
        found = F.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
        latents = self.to_out(found.transpose(0, 1).flatten(1)) + self.latents
        value, gate = self.expand(self.feedforward_norm(latents)).chunk(2, dim=-1)
        return (self.contract(value * F.gelu(gate)) + latents).float().mean(0)

    def _heads(self, x: Tensor) -> Tensor:
        """[rows, heads * d] -> [heads, rows, d]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
