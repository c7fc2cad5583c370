"""Latent attention pooling of NV-Embed (arXiv:2405.17428, section 3.2): each token looks itself up in a learned dictionary.

    A  = attention(queries = LN(h), keys and values = LN(latents))      8 heads of 4096, no bias
    h1 = A + h
    h2 = FF(LN(h1)) + h1        FF: Linear(H, 8H), GEGLU, Linear(4H, H)
    e  = mean of h2 over the text's pooled tokens

Tokens are queries, latents are keys and values: not the other way around, as in a Perceiver. The paper speaks of an MLP
with GELU; the released weights are GEGLU with factor 4, and so is this. Tokens do not see each other here, so texts
need no separation and the work is cut into slices of tokens.

Names in the released weights `latent_attention_model.*` -> names here:

    latents                                        latents                  [512, H]
    cross_attend_blocks.0.norm.*                   token_norm.*             LN of the tokens
    cross_attend_blocks.0.norm_context.*           latent_norm.*            LN of the latents
    cross_attend_blocks.0.fn.to_q.weight           to_query.weight          [8 * 4096, H]
    cross_attend_blocks.0.fn.to_kv.weight          to_key_value.weight      [2 * 8 * 4096, H], keys first
    cross_attend_blocks.0.fn.to_out.weight         to_out.weight            [H, 8 * 4096]
    cross_attend_blocks.1.norm.*                   feedforward_norm.*
    cross_attend_blocks.1.fn.net.0.*               expand.*                 [8H, H], value half first, then gate half
    cross_attend_blocks.1.fn.net.2.*               contract.*               [H, 4H]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedtrain.pooling.segments import pooled_tokens
from embedtrain.types import RaggedTokens

# Queries are 8 * 4096 wide: 1024 tokens of them are 128 MiB in fp32.
_TOKENS_AT_ONCE = 1024


class LatentAttentionPooling(nn.Module):
    """Mean of the tokens after one cross-attention to trainable latents and a feed-forward layer. Defaults: NV-Embed.

    hidden_size: of the backbone; supplied by the program.
    """

    def __init__(
        self, *, hidden_size: int, num_latents: int = 512, num_heads: int = 8, head_dim: int = 4096, expansion: int = 4
    ) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.expansion = expansion
        inner = num_heads * head_dim
        self.latents = nn.Parameter(torch.randn(num_latents, hidden_size))
        self.token_norm = nn.LayerNorm(hidden_size)
        self.latent_norm = nn.LayerNorm(hidden_size)
        self.to_query = nn.Linear(hidden_size, inner, bias=False)
        self.to_key_value = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, hidden_size, bias=False)
        self.feedforward_norm = nn.LayerNorm(hidden_size)
        self.expand = nn.Linear(hidden_size, 2 * expansion * hidden_size)
        self.contract = nn.Linear(expansion * hidden_size, hidden_size)

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        flat, text = (index.to(hidden.device, non_blocking=True) for index in pooled_tokens(tokens))
        keys, values = self._heads(self.to_key_value(self.latent_norm(self.latents))).chunk(2, dim=0)
        total = torch.zeros(len(tokens), hidden.shape[1], dtype=torch.float32, device=hidden.device)
        counts = torch.bincount(text, minlength=len(tokens)).float()[:, None]
        for rows, owners in zip(flat.split(_TOKENS_AT_ONCE), text.split(_TOKENS_AT_ONCE), strict=True):
            states = hidden[rows].float()
            if torch.is_grad_enabled():  # keep the slice's states, not its queries 64 times as wide
                states = checkpoint(self._look_up, states, keys, values, use_reentrant=False)
            else:
                states = self._look_up(states, keys, values)
            total = total.index_add(0, owners, states.float())
        return total / counts

    def _look_up(self, states: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries = self._heads(self.to_query(self.token_norm(states)))
        found = F.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
        states = self.to_out(found.transpose(0, 1).flatten(1)) + states
        value, gate = self.expand(self.feedforward_norm(states)).chunk(2, dim=-1)
        return self.contract(value * F.gelu(gate)) + states

    def _heads(self, x: Tensor) -> Tensor:
        """[rows, heads * d] -> [heads, rows, d]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
