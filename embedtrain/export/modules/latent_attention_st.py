"""Latent attention pooling (NV-Embed, arXiv:2405.17428, section 3.2), for sentence-transformers.

This file travels with the model, since sentence-transformers has no such module; it needs torch and safetensors only.

Every token looks itself up in a learned dictionary: attention with the tokens as queries and the latents as keys and
values, then a gated feed-forward layer, both with a residual. The mean over tokens is the embedding.
"""

import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


class LatentAttentionPooling(nn.Module):
    """token_embeddings [N, T, H] and attention_mask [N, T] -> sentence_embedding [N, H]."""

    def __init__(self, hidden_size, num_latents, num_heads, head_dim, expansion, include_prompt=True):
        super().__init__()
        self.config = {
            "hidden_size": hidden_size,
            "num_latents": num_latents,
            "num_heads": num_heads,
            "head_dim": head_dim,
            "expansion": expansion,
            "include_prompt": include_prompt,
        }
        self.include_prompt = include_prompt
        inner = num_heads * head_dim
        self.latents = nn.Parameter(torch.empty(num_latents, hidden_size))
        self.token_norm = nn.LayerNorm(hidden_size)
        self.latent_norm = nn.LayerNorm(hidden_size)
        self.to_query = nn.Linear(hidden_size, inner, bias=False)
        self.to_key_value = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, hidden_size, bias=False)
        self.feedforward_norm = nn.LayerNorm(hidden_size)
        self.expand = nn.Linear(hidden_size, 2 * expansion * hidden_size)
        self.contract = nn.Linear(expansion * hidden_size, hidden_size)

    def forward(self, features, **kwargs):
        states = features["token_embeddings"].to(self.latents.dtype)
        mask = features["attention_mask"].to(torch.bool)
        if not self.include_prompt and features.get("prompt_length") is not None:
            prompt_length = int(torch.as_tensor(features["prompt_length"]).flatten()[0])
            position = mask.cumsum(dim=1) - 1  # of each token in its text, wherever the padding is
            mask = mask & (position >= prompt_length)
        keys, values = self._heads(self.to_key_value(self.latent_norm(self.latents))).chunk(2, dim=0)
        pooled = []
        for text, kept in zip(states, mask, strict=True):  # text by text: queries are many times as wide as states
            pooled.append(self._look_up(text[kept], keys, values).float().mean(dim=0))
        features["sentence_embedding"] = torch.stack(pooled).to(states.dtype)
        return features

    def _look_up(self, states, keys, values):
        queries = self._heads(self.to_query(self.token_norm(states)))
        found = F.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
        states = self.to_out(found.transpose(0, 1).flatten(1)) + states
        value, gate = self.expand(self.feedforward_norm(states)).chunk(2, dim=-1)
        return self.contract(value * F.gelu(gate)) + states

    def _heads(self, x):
        """[rows, heads * d] -> [heads, rows, d]"""
        return x.unflatten(-1, (-1, self.config["head_dim"])).transpose(0, 1)

    def get_embedding_dimension(self):
        return self.config["hidden_size"]

    def get_sentence_embedding_dimension(self):
        return self.config["hidden_size"]

    def save(self, output_path, *args, **kwargs):
        with open(os.path.join(output_path, "config.json"), "w", encoding="utf-8") as file:
            json.dump(self.config, file, indent=2)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, os.path.join(output_path, "model.safetensors"), metadata={"format": "pt"})

    # One argument: every version of sentence-transformers since 2 can call this.
    @staticmethod
    def load(input_path):
        with open(os.path.join(input_path, "config.json"), encoding="utf-8") as file:
            module = LatentAttentionPooling(**json.load(file))
        module.load_state_dict(load_file(os.path.join(input_path, "model.safetensors")))
        return module
