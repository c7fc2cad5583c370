from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from embedtrain.config.compose import CONFIG_PATH_VARIABLE, compose_config, load_saved, recipe_files
from embedtrain.config.schema import settings
from embedtrain.config.validate import get
from embedtrain.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(
        "# @package _global_\n# Mine.\nrun: {name: mine}\noptim: {learning_rate: 3.0e-4}\n", encoding="utf-8"
    )
    return path


def test_a_recipe_wins_over_defaults_and_the_command_line_over_the_recipe(recipe: Path) -> None:
    config = compose_config([f"recipe={recipe}"]).config
    assert (config["run"]["name"], config["run"]["dir"]) == ("mine", "runs/mine")
    assert config["optim"]["learning_rate"] == 3e-4
    config = compose_config([f"recipe={recipe}", "optim.learning_rate=1e-5"]).config
    assert config["optim"]["learning_rate"] == 1e-5


def test_a_users_folder_adds_recipes_and_options(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recipe.parent.parent
    (folder / "loss").mkdir()
    (folder / "loss" / "sharp.yaml").write_text("defaults: [infonce, _self_]\ntemperature: 0.01\n", encoding="utf-8")
    composed = compose_config(["recipe=mine", "loss=sharp"], config_dir=folder)
    assert composed.config["run"]["name"] == "mine"
    assert composed.config["loss"]["temperature"] == 0.01
    assert composed.choices["recipe"] == "mine"
    assert recipe_files(folder)["mine"] == recipe
    monkeypatch.setenv(CONFIG_PATH_VARIABLE, str(folder))
    assert compose_config(["recipe=mine"]).config["run"]["name"] == "mine"


def test_a_users_folder_leaves_no_trace_in_later_compositions(recipe: Path) -> None:
    compose_config(["recipe=mine"], config_dir=recipe.parent.parent)
    with pytest.raises(ConfigError, match="recipe has no option 'mine'"):
        compose_config(["recipe=mine"])


def test_a_recipe_without_its_package_line_speaks_of_the_whole_config_too(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("run: {name: bare}\n", encoding="utf-8")
    assert compose_config([f"recipe={path}"]).config["run"]["name"] == "bare"


def test_a_recipe_may_build_on_another(recipe: Path) -> None:
    child = recipe.with_name("child.yaml")
    child.write_text("# @package _global_\ndefaults: [mine, _self_]\nrun: {name: child}\n", encoding="utf-8")
    config = compose_config(["recipe=child"], config_dir=recipe.parent.parent).config
    assert (config["run"]["name"], config["optim"]["learning_rate"]) == ("child", 3e-4)


def test_a_recipe_that_builds_on_itself_is_told_how_to_build_on_another(recipe: Path) -> None:
    """`/recipe:` names the group, which `recipe=child` on the command line overrides: child, child, child ..."""
    text = "# @package _global_\ndefaults:\n  - /recipe: mine\n  - _self_\n"
    recipe.with_name("child.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the recipe builds on itself.*`- finetune`"):
        compose_config(["recipe=child"], config_dir=recipe.parent.parent)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is no folder {tmp_path}/none"):
        compose_config([], config_dir=tmp_path / "none")


def test_parts_are_added_by_name_without_a_plus(good: list[str], pairs: Path) -> None:
    composed = compose_config(
        [*good, "source@data.sources.more=csv", f"data.sources.more.path={pairs}", "trackers=[wandb]"]
    )
    assert list(composed.config["data"]["sources"]) == ["pairs", "more"]
    assert composed.config["data"]["sources"]["more"]["_target_"].endswith("Csv")
    assert list(composed.config["trackers"]) == ["wandb"]


def test_an_inner_component_is_swapped_and_set() -> None:
    config = compose_config(
        ["loss=matryoshka", "loss@loss.inner=hardness_weighted", "loss.inner.temperature=0.3"]
    ).config
    assert config["loss"]["inner"]["temperature"] == 0.3
    assert list(config["loss"]["inner"]["modifiers"]) == ["hardness"]


def test_the_config_is_plain_and_resolved(good: list[str], pairs: Path) -> None:
    config = compose_config(good).config
    assert json.loads(json.dumps(config)) == config
    assert config["data"]["sources"]["pairs"]["path"] == str(pairs)


def test_origins_name_default_group_recipe_and_command_line(good: list[str], recipe: Path) -> None:
    from embedtrain.config.origins import origin

    origins = compose_config([*good, f"recipe={recipe}"]).origins
    assert origin("run.seed", origins) == "default"
    assert origin("loss.temperature", origins) == "loss/infonce"
    assert origin("data.sources.pairs.limit", origins) == "data/pairs"
    assert origin("run.name", origins) == "recipe/mine"
    assert origin("training.global_batch_size", origins) == "command line"


def test_origins_agree_with_what_changes_the_value(good: list[str]) -> None:
    """Every key that is said to be a default has the schema's value."""
    from embedtrain.config.origins import origin

    composed = compose_config(good)
    bare = OmegaConf.to_container(
        OmegaConf.structured(__import__("embedtrain.config.schema", fromlist=["Config"]).Config)
    )
    for key in settings():
        if key != "run.dir" and origin(key, composed.origins) == "default" and not isinstance(get(bare, key), dict):
            assert get(composed.config, key) == get(bare, key), key


def test_a_saved_config_is_read_back_identically(good: list[str], tmp_path: Path) -> None:
    config = compose_config(good).config
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
    assert load_saved(tmp_path / "config.yaml") == config


def test_a_saved_config_with_a_foreign_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {epoch: 3}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="epoch"):
        load_saved(tmp_path / "config.yaml")


class TestFromRun:
    @pytest.fixture
    def run(self, good: list[str], tmp_path: Path) -> Path:
        folder = tmp_path / "all" / "first"
        folder.mkdir(parents=True)
        config = compose_config([*good, "run.name=first", f"run.dir={folder}", f"export.dir={folder}/model"]).config
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
        return folder

    def test_a_run_is_repeated_in_a_new_directory_beside_it(self, run: Path) -> None:
        before = load_saved(run / "config.yaml")
        config = compose_config(from_run=run).config
        assert config["run"]["name"] == "first-2"
        assert config["run"]["dir"] == str(run.parent / "first-2")
        assert config["export"]["dir"] == str(run.parent / "first-2" / "model")
        for part in ("run", "export"):
            before.pop(part), config.pop(part)
        assert config == before

    def test_names_that_are_taken_are_passed_over(self, run: Path) -> None:
        (run.parent / "first-2").mkdir()
        assert compose_config(from_run=run).config["run"]["name"] == "first-3"

    def test_overrides_apply_on_top(self, run: Path) -> None:
        config = compose_config(["run.name=other", "loss.temperature=0.5"], from_run=run).config
        assert config["run"]["dir"] == str(run.parent / "other")
        assert config["loss"]["temperature"] == 0.5

    def test_a_swapped_group_leaves_nothing_of_the_old_option(self, run: Path) -> None:
        config = compose_config(["loss=matryoshka"], from_run=run).config
        assert set(config["loss"]) == {"_target_", "inner", "dims", "weights", "dims_per_step"}

    def test_a_recipe_and_a_run_exclude_each_other(self, run: Path) -> None:
        with pytest.raises(ConfigError, match="choose one; either is a whole config"):
            compose_config(["recipe=quickstart"], from_run=run)

    def test_a_folder_without_a_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"config\.yaml: not found"):
            compose_config(from_run=tmp_path)
