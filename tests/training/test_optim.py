import math

import pytest
import torch
from torch import nn

from embedtrain.errors import ConfigError
from embedtrain.training.optim import adamw, named_trainable, parameter_groups, schedule_factor, set_learning_rates


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"embeddings": nn.Embedding(5, 4), "layer": nn.ModuleList(nn.Linear(4, 4) for _ in range(3))}
        )
        self.pooling = nn.Linear(4, 4)


def groups_by_name(**settings):
    named = named_trainable({"encoder": Toy(), "loss": nn.Module()})
    groups = parameter_groups(named, **{"learning_rate": 1.0, "weight_decay": 0.1, **settings})
    where = {id(p): group for group in groups for p in group["params"]}
    assert len(where) == len(named)
    return {name: where[id(p)] for name, p in named}


def test_vectors_are_not_decayed_and_matrices_are():
    groups = groups_by_name()
    assert groups["encoder.backbone.layer.0.weight"]["weight_decay"] == 0.1
    assert groups["encoder.backbone.layer.0.bias"]["weight_decay"] == 0.0


def test_layer_decay_shrinks_towards_the_input():
    groups = groups_by_name(layer_decay=0.5)
    assert groups["encoder.backbone.layer.2.weight"]["lr"] == 1.0
    assert groups["encoder.backbone.layer.1.weight"]["lr"] == 0.5
    assert groups["encoder.backbone.layer.0.weight"]["lr"] == 0.25
    assert groups["encoder.backbone.embeddings.weight"]["lr"] == 0.125
    assert groups["encoder.pooling.weight"]["lr"] == 1.0


def test_the_head_and_patterns_get_their_own_rates():
    groups = groups_by_name(head_learning_rate=3.0, groups={r"layer\.1\.": {"learning_rate": 7.0, "weight_decay": 0.0}})
    assert groups["encoder.pooling.weight"]["lr"] == 3.0
    assert groups["encoder.backbone.layer.1.weight"]["lr"] == 7.0
    assert groups["encoder.backbone.layer.1.weight"]["weight_decay"] == 0.0
    assert groups["encoder.backbone.layer.0.weight"]["lr"] == 1.0


def test_a_pattern_that_matches_nothing_is_an_error_that_shows_names():
    with pytest.raises(ConfigError, match=r"optim.groups: no parameter .*'lyer'.*encoder\.backbone"):
        groups_by_name(groups={"lyer": {"learning_rate": 1.0}})


def test_nothing_to_train_is_refused():
    frozen = Toy().requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        named_trainable({"encoder": frozen, "loss": nn.Module()})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", lambda s: 1 - (s - 10) / 90),
        ("cosine", lambda s: 0.5 * (1 + math.cos(math.pi * (s - 10) / 90))),
        ("wsd", lambda s: 1.0 if s < 80 else (100 - s) / 20),
        ("constant", lambda s: 1.0),
    ],
)
def test_the_learning_rate_is_the_closed_form(schedule, expected):
    for step in range(100):
        factor = schedule_factor(step, schedule=schedule, total_steps=100, warmup_steps=10, decay_steps=20)
        assert factor == pytest.approx((step + 1) / 10 if step < 10 else expected(step))


def test_the_factor_multiplies_each_groups_own_rate():
    groups = parameter_groups(
        named_trainable({"encoder": Toy(), "loss": nn.Module()}), learning_rate=2.0, weight_decay=0.0, layer_decay=0.5
    )
    optimizer = adamw(groups, betas=(0.9, 0.999), eps=1e-8)
    for factor in (0.5, 0.25):  # not compounded
        set_learning_rates(optimizer, factor)
        assert {group["lr"] for group in optimizer.param_groups} == {factor * r for r in (2.0, 1.0, 0.5, 0.25)}


def test_an_unknown_schedule_names_the_key():
    with pytest.raises(ConfigError, match=r"optim\.schedule: expected linear"):
        schedule_factor(5, schedule="linaer", total_steps=10, warmup_steps=0)


def test_fp32_weights_move_at_small_learning_rates():
    """bf16 master weights lose most updates at 1e-5; ours are fp32 and all move."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    before = layer.weight.detach().clone()
    optimizer = adamw(
        [{"params": [layer.weight], "lr": 1e-5, "base_learning_rate": 1e-5, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    for _ in range(50):
        optimizer.zero_grad()
        layer(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
    assert (layer.weight != before).float().mean() > 0.99
