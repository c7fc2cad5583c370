"""Every recipe: composes, is in order, and reads back from a run directory as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from embedtrain.cli import headline
from embedtrain.config.compose import compose_config, load_saved, recipe_files
from embedtrain.config.validate import validate

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
