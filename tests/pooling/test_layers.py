"""Heads that read several layers, against loops over layers and texts."""

from __future__ import annotations

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.layer_average import LayerAveragePooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.trainable import TrainablePooling
from embedtrain.types import RaggedTokens

HIDDEN, LAYERS, LENGTHS, SKIP = 6, 3, (5, 1, 7, 3), (2, 0, 6, 1)


def tokens():
    return RaggedTokens.from_lists([[1] * n for n in LENGTHS], skip=SKIP)


def layers():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(sum(LENGTHS), HIDDEN, generator=generator) for _ in range(LAYERS + 1)]


def kept(states):
    """The pooled states of each text."""
    return [part[skip:] for part, skip in zip(states.split(LENGTHS), SKIP, strict=True)]


@pytest.mark.parametrize("numbers", [[1, -1], [2], [0, 1, 3], [-4]])
def test_the_average_of_layers_and_then_the_head(numbers):
    head = LayerAveragePooling(layers=numbers, pooling=MeanPooling(), num_layers=LAYERS)
    average = sum(layers()[number] for number in numbers) / len(numbers)
    torch.testing.assert_close(head(layers(), tokens()), torch.stack([rows.mean(0) for rows in kept(average)]))


def test_first_and_last_by_two_ways():
    head = LayerAveragePooling(layers=[1, -1], pooling=MeanPooling(), num_layers=LAYERS)
    torch.testing.assert_close(head(layers(), tokens()), FirstLastPooling()(layers(), tokens()))


@pytest.mark.parametrize("numbers", [[], [4], [1, -5]])
def test_layers_that_are_not_there_are_refused(numbers):
    with pytest.raises(ConfigError, match=r"from 0 \(the embedding\) to 3 .* down to -4, got"):
        LayerAveragePooling(layers=numbers, pooling=MeanPooling(), num_layers=LAYERS)


def slow_trainable(head, states):
    """One text's vector from what is read of it, [n, H]: head by head, latent by latent."""
    normed = head.state_norm(states)
    keys, values = head.to_key_value(normed).chunk(2, dim=1)
    queries = head.to_query(head.latent_norm(head.latents))
    rows = []
    for latent, query in zip(head.latents, queries, strict=True):
        found = []
        for number in range(head.num_heads):
            part = slice(number * head.head_dim, (number + 1) * head.head_dim)
            scores = torch.stack([query[part] @ key[part] for key in keys]) / head.head_dim**0.5
            weights = scores.exp() / scores.exp().sum()
            found.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
        row = head.to_out(torch.cat(found)) + latent
        value, gate = head.expand(head.feedforward_norm(row)).chunk(2)
        rows.append(head.contract(value * gate * 0.5 * (1 + torch.erf(gate / 2**0.5))) + row)
    return sum(rows) / len(rows)


@pytest.mark.parametrize("reads", ["layers", "tokens"])
def test_trainable_pooling_against_a_loop(reads):
    torch.manual_seed(1)
    sizes = {"num_latents": 3, "num_heads": 2, "head_dim": 4, "expansion": 2}
    head = TrainablePooling(hidden_size=HIDDEN, num_layers=LAYERS, reads=reads, **sizes)
    if reads == "layers":
        torch.nn.init.normal_(head.layer_embedding)
        means = [torch.stack([rows.mean(0) for rows in kept(states)]) for states in layers()[1:]]
        texts = [torch.stack([mean[text] for mean in means]) + head.layer_embedding for text in range(len(LENGTHS))]
        hidden = layers()
    else:
        hidden = layers()[-1]
        texts = kept(hidden)
    made = head(hidden, tokens())
    torch.testing.assert_close(made, torch.stack([slow_trainable(head, text) for text in texts]), rtol=1e-4, atol=1e-5)
    made.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    with torch.no_grad():
        torch.testing.assert_close(head(hidden, tokens()), made)
