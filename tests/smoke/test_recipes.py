"""Every recipe runs, all its stages, on a small random model; a sixth of them each day, all with EMBEDTRAIN_SMOKE=all."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from embedtrain import cli, log
from embedtrain.assemble import build_encoder, build_teachers
from embedtrain.config.compose import load_saved, recipe_files
from embedtrain.config.stages import stage_configs
from embedtrain.data.prompts import PLACEHOLDER
from embedtrain.export.load import load_encoder
from embedtrain.training.building import build_learned, build_named
from embedtrain.training.checkpoint import find_checkpoint, load_weights
from embedtrain.training.stages import take_over

TURNS = 6
TEXTS = ["read a file line by line", "def f(x):\n    return x", "."]


def in_turn() -> list[str]:
    names = list(recipe_files())
    if os.environ.get("EMBEDTRAIN_SMOKE") == "all":
        return names
    today = datetime.date.today().toordinal() % TURNS
    return [name for number, name in enumerate(names) if number % TURNS == today]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    AcceleratorState._reset_state()
    torch.set_num_threads(1)
    yield
    log.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", in_turn())
def test_a_recipe_trains_and_its_export_gives_the_embeddings_of_the_trained_encoder(name: str, tmp_path: Path) -> None:
    assert cli.main(["smoke", f"recipe={name}", f"output={tmp_path}"]) == 0
    run = tmp_path / "run"
    stages = stage_configs(load_saved(run / "config.yaml"))
    before = None
    for stage, config in stages.items():
        folder = run / "stages" / stage if stage else run
        measured = [json.loads(line).get("train/loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [loss for loss in measured if loss is not None]
        assert len(losses) == config["training"]["max_steps"]
        assert all(math.isfinite(loss) and loss != 0 for loss in losses)

        encoder = build_encoder(config)
        if before is not None:
            take_over(encoder, before)
        if config["training"]["max_steps"] == 0:
            continue  # the model stays as it was
        untrained = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
        learned = build_learned(config, encoder, build_teachers(config))
        checkpoint = find_checkpoint(folder / "checkpoints")
        assert checkpoint is not None
        load_weights(checkpoint, build_named(config, encoder, learned))
        trained = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
        assert any(not torch.equal(trained[key], untrained[key]) for key in untrained), f"{stage} moved nothing"
        before = folder / "weights.safetensors"

    if config["export"]["whiten_to"] is not None:
        return  # what is exported is fitted after training; export/ has its tests
    exported = load_encoder(run / "model")
    for model in (encoder, exported):
        model.set_context(TEXTS)  # of one that reads a corpus: a folder has a sample of the run's, a checkpoint none
    for role in ("query", "document"):
        template, task = encoder.tokenizer.prompts.template(role), "Find the function that does this."
        asks = PLACEHOLDER in template  # a folder holds no such prompt: its user gives the whole of it
        told = [[text] * len(TEXTS) if asks else None for text in (task, template.replace(PLACEHOLDER, task))]
        ours, theirs = (
            model.eval().encode_embeddings(TEXTS, role=role, instructions=words).values
            for model, words in zip((encoder, exported), told, strict=True)
        )
        np.testing.assert_allclose(theirs.numpy(), ours.numpy(), atol=1e-5)
