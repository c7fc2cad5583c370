"""The sigmoid loss against a loop over pairs."""

from __future__ import annotations

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.losses import contrast as core
from embedtrain.losses.sigmoid import SigmoidLoss
from tests.helpers.batches import random_batch, with_leaves
from tests.losses import oracle
from tests.losses.test_infonce import TERMS, gradients, ragged_batch


@pytest.mark.parametrize("tile_bytes", [1, 64 << 20])
@pytest.mark.parametrize("terms", TERMS)
def test_loss_and_all_gradients_are_those_of_a_loop_over_pairs(terms, tile_bytes, monkeypatch):
    monkeypatch.setattr(core, "CPU_TILE_BYTES", tile_bytes)
    batch = ragged_batch(1)
    criterion = SigmoidLoss(temperature=0.3, bias=-2.0, terms=terms).double()
    output = criterion(batch)
    reference = with_leaves(batch)
    log_scale = criterion.temperature.log_scale.detach().clone().requires_grad_()
    bias = criterion.bias.detach().clone().requires_grad_()
    expected = oracle.sigmoid(reference, temperature=torch.exp(-log_scale), bias=bias, terms=terms)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    own = [batch.queries.values, batch.documents.values, criterion.temperature.log_scale, criterion.bias]
    other = [reference.queries.values, reference.documents.values, log_scale, bias]
    found = torch.autograd.grad(output.loss, own, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, other, allow_unused=True, materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_fixed_numbers_get_no_gradient():
    criterion = SigmoidLoss(learn_temperature=False, learn_bias=False)
    criterion(random_batch(0)).loss.backward()
    assert criterion.bias.grad is None
    assert [name for name, p in criterion.named_parameters() if p.requires_grad] == []


def test_a_query_whose_documents_are_all_answers_is_finite():
    batch = random_batch(0, queries=1, positives=(2, 2), negatives=(0, 0), known=(0, 0))
    found = gradients(batch, SigmoidLoss()(batch).loss)
    assert all(torch.isfinite(g).all() for g in found)


def test_bad_settings_name_the_key():
    with pytest.raises(ConfigError, match=r"loss.terms"):
        SigmoidLoss(terms=["d2p"])
    with pytest.raises(ConfigError, match=r"loss.temperature: a learned temperature stays within"):
        SigmoidLoss(temperature=5.0)
