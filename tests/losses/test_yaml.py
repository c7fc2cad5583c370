"""Each loss that can be chosen by name lists every setting it has, builds, and gives a loss with gradients."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
import torch

from embedtrain.config.build import build
from embedtrain.config.compose import ROOT, compose_config
from embedtrain.losses import prepare
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.modifiers.hardness import HardnessWeight
from embedtrain.losses.wrappers.matryoshka import Matryoshka
from embedtrain.types import needs_of
from tests.helpers.batches import annotated, random_batch, supplied

LOSSES = sorted(path.stem for path in (ROOT / "configs" / "loss").glob("*.yaml"))


def composed(*overrides: str) -> dict:
    return compose_config(list(overrides)).config["loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_every_setting_is_listed_builds_and_trains(name):
    node = composed(f"loss={name}")
    module, _, kind = node["_target_"].rpartition(".")
    assert set(node) - {"_target_"} == set(inspect.signature(getattr(import_module(module), kind)).parameters)
    loss = build(node)
    prepare(loss, embedding_dim=768, teachers=dict.fromkeys(needs_of(loss).teachers, 768))
    plain = annotated(random_batch(dim=768, negatives=(1, 2)))
    batch = supplied(plain, needs_of(loss))
    output = loss(batch)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    learning = [plain.queries.values, *(view.values for view in batch.queries.views.values())]
    assert any(vectors.grad is not None and vectors.grad.norm() > 0 for vectors in learning)
    assert all(value.ndim == 0 and not value.requires_grad for value in output.metrics.values())


def test_yaml_and_class_have_the_same_defaults():
    node = composed("loss=infonce")
    for name, parameter in inspect.signature(InfoNCE).parameters.items():
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        default = {} if name in ("modifiers", "extra") else default
        assert node[name] == default, name


def test_hardness_weighted_is_infonce_with_weights():
    loss = build(composed("loss=hardness_weighted"))
    assert isinstance(loss, InfoNCE)
    assert isinstance(loss.modifiers["hardness"], HardnessWeight)
    assert loss.modifiers["hardness"].alpha == 9.0


def test_the_inner_loss_of_matryoshka_can_be_chosen_and_set():
    loss = build(composed("loss=matryoshka", "loss@loss.inner=hardness_weighted", "loss.inner.temperature=0.01"))
    assert isinstance(loss, Matryoshka)
    assert loss.inner.temperature.start == 0.01
    assert isinstance(loss.inner.modifiers["hardness"], HardnessWeight)
