"""NV-Embed's pooling: against the paper's formula, one token, one head, one latent at a time; and its size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from transformers import MistralConfig

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.pooling import latent_attention
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.types import RaggedTokens

HIDDEN, LATENTS, HEADS, HEAD_DIM = 6, 5, 2, 3


def pooling():
    torch.manual_seed(0)
    head = LatentAttentionPooling(
        hidden_size=HIDDEN, num_latents=LATENTS, num_heads=HEADS, head_dim=HEAD_DIM, expansion=2
    )
    for norm in (head.token_norm, head.latent_norm, head.feedforward_norm):  # else a swapped norm would not show
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return head


def norm(module, x):
    centred = x - x.mean()
    return centred / torch.sqrt(x.var(unbiased=False) + module.eps) * module.weight + module.bias


def one_token(head, h):
    query = head.to_query.weight @ norm(head.token_norm, h)
    attended = []
    for n in range(HEADS):
        rows = slice(n * HEAD_DIM, (n + 1) * HEAD_DIM)
        keys, values = [], []
        for latent in head.latents:
            normed = norm(head.latent_norm, latent)
            keys.append(head.to_key_value.weight[rows] @ normed)
            values.append(head.to_key_value.weight[HEADS * HEAD_DIM :][rows] @ normed)
        scores = torch.stack([query[rows] @ key for key in keys]) / math.sqrt(HEAD_DIM)
        attended.append(sum(w * v for w, v in zip(scores.softmax(0), values, strict=True)))
    h1 = head.to_out.weight @ torch.cat(attended) + h
    wide = head.expand.weight @ norm(head.feedforward_norm, h1) + head.expand.bias
    value, gate = wide[: wide.numel() // 2], wide[wide.numel() // 2 :]
    return head.contract.weight @ (value * F.gelu(gate)) + head.contract.bias + h1


def test_it_is_the_published_formula(monkeypatch):
    monkeypatch.setattr(latent_attention, "_TOKENS_AT_ONCE", 4)  # slices cut texts
    head = pooling()
    lengths, skip = (5, 1, 3), (2, 0, 1)
    hidden = torch.randn(sum(lengths), HIDDEN)
    tokens = RaggedTokens.from_lists([[1] * n for n in lengths], skip=skip)
    expected = torch.stack(
        [
            torch.stack([one_token(head, h) for h in states[k:]]).mean(0)
            for states, k in zip(hidden.split(lengths), skip, strict=True)
        ]
    )
    torch.testing.assert_close(head(hidden, tokens), expected, rtol=1e-5, atol=1e-5)


def test_every_weight_and_the_states_get_the_gradient_of_the_formula():
    head = pooling()
    hidden = torch.randn(4, HIDDEN, requires_grad=True)
    weight = torch.randn(1, HIDDEN)
    inputs = [hidden, *head.parameters()]
    ours = torch.autograd.grad((head(hidden, RaggedTokens.from_lists([[1] * 4])) * weight).sum(), inputs)
    expected = torch.stack([one_token(head, h) for h in hidden]).mean(0)
    slow = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_with_mistral_7b_it_has_the_published_number_of_parameters(tmp_path):
    MistralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ).save_pretrained(tmp_path)
    with torch.device("meta"):
        backbone = TransformerBackbone(name=str(tmp_path), weights="random", attention="bidirectional")
        head = LatentAttentionPooling(hidden_size=backbone.hidden_size)
    parameters = [*backbone.parameters(), *head.parameters()]
    assert all(parameter.is_meta for parameter in parameters)
    assert round(sum(parameter.numel() for parameter in parameters) / 1e6) == 7851  # arXiv:2405.17428, table 1
