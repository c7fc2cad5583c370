"""Every recipe: composes, is in order, reads back from a run directory as it was, says where its numbers are from, and plans
without a model hub. That it runs: tests/smoke."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from embedtrain import cli
from embedtrain.config.cards import cards, headline
from embedtrain.config.compose import ROOT, Composed, compose_config, load_saved, recipe_files
from embedtrain.config.stages import stage_configs
from embedtrain.config.validate import validate
from embedtrain.outlay import read_hardware, read_launch
from embedtrain.planning import make_plan
from tests.helpers.provenance import untagged

RECIPES = recipe_files()
# What a recipe leaves to its user. Of a file it matters that it is there; what is in it is read later.
ASKED_OF_THE_USER = {
    "enterprise": ["data.path=some/pairs"],
    "finetune": ["backbone.name=some/model", "data.path=some/pairs"],
    "insent": ["data.path=train.py"],
    "insent_colbert": ["data.path=train.py"],
    "sitemb": ["data.path=train.py"],
    "sitemb_v15": ["data.path=train.py"],
}


@cache
def composed_of(name: str) -> Composed:
    return compose_config([f"recipe={name}", *ASKED_OF_THE_USER.get(name, [])])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_in_order_and_is_saved_and_read_back_identically(name: str, tmp_path: Path) -> None:
    composed = composed_of(name)
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
    composed = composed_of(name)
    assert composed.config["run"]["name"] == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_which_paper_what_was_run_and_what_was_not(name: str) -> None:
    _, card = cards()[name]
    assert card.get("title")
    assert card.get("paper")
    assert card.get("ran")
    assert card.get("not_run") or name in ASKED_OF_THE_USER
    assert (
        "arXiv:" in card["paper"]
        or card["paper"].startswith("none: ")
        or "doi " in card["paper"]
        or "http" in card["paper"]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_of_a_recipe_says_where_it_is_from(name: str) -> None:
    assert untagged(RECIPES[name].read_text(encoding="utf-8")) == []


def test_every_recipe_has_a_row_in_the_table() -> None:
    lines = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8").splitlines()
    heads, _, *rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")
    ]
    found = {row[0].partition("]")[0].removeprefix("["): dict(zip(heads, row, strict=True)) for row in rows}
    assert set(found) == set(RECIPES)
    told = ("paper", "backbone", "pooling", "loss", "negatives", "data", "stages", "run here")
    assert [(name, head) for name, row in found.items() for head in told if not row[head]] == []


def launch_file(name: str) -> str:
    """Of the command at the head of a recipe; alone where it names none."""
    found = re.search(r"--config_file launch/(\w+)\.yaml train\.py", RECIPES[name].read_text(encoding="utf-8"))
    return found[1] if found else "cpu_2"


# Published counts are rounded, and some leave out what the table of words or a head has.
TOLERANCE = 0.02


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("enterprise", "finetune", "quickstart")])
def test_a_recipe_plans_without_a_model_hub_and_has_the_published_size(name: str) -> None:
    composed = composed_of(name)
    card = composed.config["card"]
    validate(composed.config, composed.problems, world=8)
    sharded = read_launch(launch_file(name)).sharded
    plans = {
        stage: make_plan(config, world=8, sharded=sharded) for stage, config in stage_configs(composed.config).items()
    }
    for plan in plans.values():
        assert plan.parameters is not None, plan.unknown
        assert plan.memory is not None
        assert read_hardware("h100").fits(sum(plan.memory.values())), "its command would run out of memory"
        assert plan.outlay is not None
    last = list(plans.values())[-1].parameters
    assert last is not None
    if card["parameters"] is not None:
        assert last.merged == pytest.approx(card["parameters"], rel=TOLERANCE)
    if card["embedding_dim"] is not None:
        assert last.embedding_dim == card["embedding_dim"]


def test_the_command_lists_every_recipe_with_its_paper_and_imports_no_torch() -> None:
    program = "import sys; from embedtrain.cli import main; main(['recipes', 'output=json']); assert 'torch' not in sys.modules"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    listed = json.loads(answer)
    assert list(listed) == list(RECIPES)
    assert listed["nv_embed_v1"]["paper"] == listed["nv_embed"]["paper"]
    assert listed["nv_embed_v1"]["title"] == "NV-Embed v1"


def test_a_number_without_a_tag_is_found() -> None:
    text = """# head, published
card: {parameters: 12}
loss: {temperature: 0.02}    # published: sec. 3
optim:
  learning_rate: 1.0e-5
  # derived: a tenth of the steps
  warmup_steps: 100
stages:    # assumed
  one: {training: {max_steps: 5}}
data:
  num_negatives: 7    # seven
name: "7 words"
"""
    assert untagged(text) == ["5: learning_rate: 1.0e-5", "11: num_negatives: 7    # seven"]


def test_a_check_with_a_launch_file_and_a_device_states_hours(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "recipe=quickstart", "launch=ddp_8gpu", "hardware=h100", "output=json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["world"] == 8
    seconds = plan["outlay"]["flops_per_step"] * plan["steps"] / (8 * 989e12 * 0.4)
    assert plan["outlay"]["hours"] == pytest.approx(seconds / 3600)
    assert plan["outlay"]["dollars"] == pytest.approx(plan["outlay"]["hours"] * 8 * 2.5)
