"""Cheap dropout: the right share, independent bits, an exact mean, replay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from embedtrain.backbones.random_bits import CheapDropout, keep_mask, replace_dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_probability_in_every_lane(probability):
    torch.manual_seed(0)
    keep, rescale = keep_mask((40_000, 4), probability)  # a 64-bit draw fills the four columns
    share = 1 - keep.double().mean(0)
    assert (share - probability).abs().max() < 5 * (probability * (1 - probability) / 40_000) ** 0.5
    assert rescale == pytest.approx(1 / (1 - probability), rel=1e-4 / (1 - probability))


def test_neighbours_are_independent():
    torch.manual_seed(0)
    keep = keep_mask((40_000, 4), 0.5)[0].double()
    correlation = torch.corrcoef(keep.T) - torch.eye(4)
    assert correlation.abs().max() < 0.03


def test_dropout_scales_what_survives_and_its_gradient_alike():
    torch.manual_seed(0)
    x = torch.full((1001,), 3.0, requires_grad=True)
    y = CheapDropout(0.25).train()(x)
    y.sum().backward()
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 4.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(x.grad, y.detach() / 3)


def test_the_same_seed_gives_the_same_mask_and_the_next_draw_another():
    dropout, x = CheapDropout(0.5).train(), torch.ones(100)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_replacing_leaves_weights_alone_and_evaluation_exact():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    keys = list(model.state_dict())
    replace_dropout(model)
    assert list(model.state_dict()) == keys
    assert isinstance(model[1], CheapDropout)
    x = torch.randn(2, 3)
    assert torch.equal(model.eval()(x), model[0](x))
