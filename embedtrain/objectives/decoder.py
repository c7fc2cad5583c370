"""What the weak decoders are made of. They are trained with the encoder and thrown away afterwards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedtrain.backbones.transformer import TransformerBackbone


class AttentionBlock(nn.Module):
    """One transformer layer, norms behind as in BERT: states of a query stream attend to a context under a mask.

    a = norm(q + attention(q, context))      out = norm(a + W2 gelu(W1 a))
    """

    def __init__(self, backbone: TransformerBackbone) -> None:
        super().__init__()
        size = backbone.hidden_size
        self.heads: int = backbone.config.num_attention_heads
        self.query, self.key, self.value, self.output = (nn.Linear(size, size) for _ in range(4))
        self.attention_norm, self.norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.inner, self.outer = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, query: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """Query [N, T, H], context [N, U, H], visible [N, T, U] bool, at least one true in each row -> [N, T, H]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, context), (self.value, context))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
        states = self.attention_norm(query + self.output(attended.transpose(1, 2).flatten(-2)))
        return self.norm(states + self.outer(F.gelu(self.inner(states))))


def positions(longest: int, size: int) -> nn.Embedding:
    """A table of learned positions. The decoder's own, since a backbone with rotary positions has none to lend."""
    table = nn.Embedding(longest, size)
    nn.init.normal_(table.weight, std=0.02)
    return table


def filler_sees_first(visible: Tensor) -> Tensor:
    """[N, T, U] with something to see for rows that see nothing; they stand for no word, and their result is not read."""
    blind = ~visible.any(-1, keepdim=True)
    first = torch.zeros_like(visible)
    first[..., 0] = True
    return visible | (blind & first)
