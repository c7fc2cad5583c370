"""encoder.train_only: what no pattern is found in is frozen, in the run and in the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embedtrain.assemble import build_encoder
from embedtrain.errors import ConfigError
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny, weights


def test_only_what_a_pattern_is_found_in_trains_and_moves(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "encoder.train_only=[layer.1.,projection]", "encoder.projection_dim=8")
    trainer = tiny_trainer(config)
    names = [name for name, _ in trainer.named]
    assert names
    assert all("layer.1." in name or "projection" in name for name in names)
    before = weights(trainer)
    frozen = {n: p.clone() for n, p in trainer.step.encoder.named_parameters() if not p.requires_grad}
    trainer.fit(0)
    assert not torch.equal(weights(trainer), before)
    for name, parameter in trainer.step.encoder.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def test_a_run_of_biases_alone_resumes_to_the_bit(tmp_path: Path) -> None:
    only = "encoder.train_only=[bias$]"
    _, whole, _ = train_tiny(tiny_config(tmp_path, only, name="whole"))
    config = tiny_config(tmp_path, only, name="cut")
    train_tiny(config, stop_after=2)
    _, resumed, _ = train_tiny(config)
    assert torch.equal(whole, resumed)


def test_a_pattern_that_is_found_nowhere_is_refused_with_names_that_are_there(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "encoder.train_only=[layer.7.,bias$]")
    with pytest.raises(
        ConfigError, match=r"encoder\.train_only: no parameter has a name that matches 'layer\.7\.'.*backbone"
    ):
        build_encoder(config)
