from __future__ import annotations

import pytest
import torch
from torch import nn

from embedtrain.errors import ConfigError
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.layer_average import LayerAveragePooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.pooling.projected import ProjectedPooling
from embedtrain.types import RaggedTokens


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_head_in_front_times_each_matrix_in_turn(bias):
    tokens, hidden = RaggedTokens.from_lists([[1] * 3, [1] * 5]), torch.randn(8, 32)
    head = ProjectedPooling(hidden_size=32, sizes=[48, 16], bias=bias, pooling=MeanPooling())
    expected = torch.stack([hidden[:3].mean(0), hidden[3:].mean(0)])
    for layer in head.layers:
        assert isinstance(layer, nn.Linear)
        expected = expected @ layer.weight.T + (layer.bias if bias else 0)
    torch.testing.assert_close(head(hidden, tokens), expected)
    assert head.output_dim == 16


def test_its_layers_run_in_full_precision_where_the_backbone_does_not():
    tokens, hidden = RaggedTokens.from_lists([[1] * 3]), torch.randn(3, 32)
    head = ProjectedPooling(hidden_size=32, sizes=[16], pooling=MeanPooling())
    expected = head(hidden, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden, tokens), expected)


def test_it_asks_for_what_the_head_in_front_asks_for():
    eos = ProjectedPooling(hidden_size=32, sizes=[4], pooling=EosPooling())
    layers = ProjectedPooling(
        hidden_size=32, sizes=[4], pooling=LayerAveragePooling(layers=[1, -1], pooling=MeanPooling(), num_layers=2)
    )
    asked = [(head.reads_last_token, head.needs_layers, head.reads_spans) for head in (eos, layers)]
    assert asked == [(True, False, False), (False, True, False)]
    assert ProjectedPooling(hidden_size=32, sizes=[4], pooling=MeanPooling()).reads_spans


def test_sizes_and_heads_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="sizes: expected the dimensions behind each layer"):
        ProjectedPooling(hidden_size=32, sizes=[], pooling=MeanPooling())
    with pytest.raises(ConfigError, match="MultiVectorPooling does not give one plain vector"):
        ProjectedPooling(hidden_size=32, sizes=[4], pooling=MultiVectorPooling(hidden_size=32, punctuation_ids=[]))


def test_a_relu_stands_between_the_layers_and_not_behind_them():
    tokens, hidden = RaggedTokens.from_lists([[1] * 3]), torch.randn(3, 32)
    head = ProjectedPooling(hidden_size=32, sizes=[48, 16], bias=True, activation="relu", pooling=MeanPooling())
    first, last = head.layers
    expected = last(torch.relu(first(hidden.mean(0, keepdim=True))))
    torch.testing.assert_close(head(hidden, tokens), expected)
    assert (expected < 0).any()
    with pytest.raises(ConfigError, match=r"pooling\.activation='gelu'"):
        ProjectedPooling(hidden_size=32, sizes=[4], activation="gelu", pooling=MeanPooling())  # type: ignore[arg-type]
