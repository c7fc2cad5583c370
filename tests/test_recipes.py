"""Every recipe: composes, is in order, reads back from a run directory as it was, and runs: two steps of a tiny model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from omegaconf import OmegaConf

from embedtrain import cli, log
from embedtrain.assemble import build_encoder
from embedtrain.cli import headline
from embedtrain.config.build import build
from embedtrain.config.compose import compose_config, load_saved, recipe_files
from embedtrain.config.validate import validate
from embedtrain.training.checkpoint import find_checkpoint, load_weights
from embedtrain.training.optim import named_trainable
from tests.helpers.models import tiny_model_dir
from tests.helpers.runs import write_pairs

RECIPES = recipe_files()
# What a recipe leaves to its user.
ASKED_OF_THE_USER = {"finetune": ["backbone.name=some/model", "data.path=some/pairs"]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_in_order_and_is_saved_and_read_back_identically(name: str, tmp_path: Path) -> None:
    composed = compose_config([f"recipe={name}", *ASKED_OF_THE_USER.get(name, [])])
    validate(composed.config, composed.problems)
    assert composed.choices["recipe"] == name
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(composed.config)), encoding="utf-8")
    assert load_saved(tmp_path / "config.yaml") == composed.config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_begins_with_what_it_is_and_its_command(name: str) -> None:
    text = RECIPES[name].read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n")
    lines = headline(text)
    assert len(lines) >= 2
    assert f"recipe={name}" in lines[-1]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_after_its_file(name: str) -> None:
    composed = compose_config([f"recipe={name}", *ASKED_OF_THE_USER.get(name, [])])
    assert composed.config["run"]["name"] == name


@pytest.fixture
def small(tmp_path: Path) -> Iterator[dict[str, list[str]]]:
    """What makes each recipe small, and gives it what it asks of its user."""
    model = f"backbone.name={tiny_model_dir('bert', tmp_path)}"
    stdlib = tmp_path / "stdlib"
    yield {
        "quickstart": [
            model,
            f"data.sources.stdlib.folder={stdlib}",
            "data.sources.stdlib.limit=30",
            f"evaluation.evaluators.held_out.pairs.folder={stdlib}",
            "evaluation.evaluators.held_out.pairs.limit=12",
        ],
        "finetune": [model, f"data.path={write_pairs(tmp_path / 'pairs.jsonl', 60)}", "data.sources.pairs.limit=30"],
    }
    log.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_its_export_gives_the_embeddings_of_the_trained_encoder(
    name: str, small: dict[str, list[str]], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    AcceleratorState._reset_state()
    run = tmp_path / "run"
    settings = [
        f"run.dir={run}",
        "training.max_steps=2",
        "training.global_batch_size=8",
        "training.log_every=1",
        "encoder.max_query_length=64",
        "encoder.max_document_length=64",
        "data.num_workers=0",
    ]
    assert cli.main(["train", f"recipe={name}", *settings, *small[name]]) == 0

    measured = [json.loads(line)["train/loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    said = [float(loss) for loss in re.findall(r"step \d of 2  loss (\S+)", (run / "log.txt").read_text())]
    assert len(measured) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in measured)
    assert said == pytest.approx(measured, abs=1e-4)

    config = load_saved(run / "config.yaml")
    encoder = build_encoder(config)
    texts = ["read a file line by line", "def f(x):\n    return x", "."]
    untrained = encoder.encode(texts, role="query").numpy()
    checkpoint = find_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 2
    load_weights(checkpoint, named_trainable({"encoder": encoder, "loss": build(config["loss"])}))
    exported = SentenceTransformer(str(run / "model"), device="cpu")
    for role, encode in (("query", exported.encode_query), ("document", exported.encode_document)):
        np.testing.assert_allclose(encode(texts), encoder.encode(texts, role=role).numpy(), atol=1e-5)
    assert np.abs(exported.encode_query(texts) - untrained).max() > 1e-4
