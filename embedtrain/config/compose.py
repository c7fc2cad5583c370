"""Put a config together: schema, one option of each group, a recipe, the command line. Later ones win.

`configs/` and `recipes/` are found beside the package in a checkout and inside it in a wheel, from any working directory.
A user's own folder adds options to any group (`DIR/loss/mine.yaml`, `DIR/recipe/mine.yaml`); `recipe=path/to/mine.yaml`
names a file.

A key on the command line needs no `+`: an unknown one is put in as it stands and refused by `validate` together with all
other problems, in one message.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from yaml import YAMLError

from embedtrain.config import origins
from embedtrain.config.explain import bad_recipe_keys, bad_syntax, bad_value, explain
from embedtrain.config.schema import Config
from embedtrain.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE / "_bundled" if (PACKAGE / "_bundled").exists() else PACKAGE.parent
CONFIG_PATH_VARIABLE = "EMBEDTRAIN_CONFIG_PATH"
MISSING = "???"


@dataclass(frozen=True)
class Composed:
    """A config and how it came about."""

    config: dict[str, Any]  # resolved and plain; a value that is required and not set is "???"
    overrides: list[str]  # as typed
    choices: dict[str, str]  # group -> option, e.g. {"recipe": "quickstart", "loss": "infonce"}
    origins: dict[
        str, str
    ]  # full key -> where its value is from: "default", "loss/infonce", "recipe/x", "command line"
    problems: list[str] = field(default_factory=list)  # found on the way; `validate` reports them with its own


def compose_config(
    overrides: Sequence[str] = (), *, config_dir: str | Path | None = None, from_run: str | Path | None = None
) -> Composed:
    """The config of `embedtrain train <overrides>`.

    Args:
        overrides: as on the command line: `recipe=quickstart`, `loss=infonce`, `optim.learning_rate=1e-5`, `~trackers.wandb`.
        config_dir: a folder with options of one's own; besides those of the environment variable EMBEDTRAIN_CONFIG_PATH.
        from_run: a run directory whose saved config takes the place of groups and recipe.

    Raises ConfigError when nothing can be put together at all; problems that leave a config are in the result.
    """
    parsed = [_parse(text) for text in overrides]
    with _registered(_user_folders(config_dir), _recipes_named(parsed)):
        parsed = [_load_recipe_file(override) for override in parsed]
        primary = "train" if from_run is None else _register_saved(Path(from_run), parsed)
        if from_run is not None:
            parsed = [override for override in parsed if not is_group(override)]
        problems: list[str] = []
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            composed = _compose_dropping_bad_values(primary, parsed, problems)
            lines = [as_forced(override) for override in parsed]
            where = origins.trace(_defaults_list(primary, lines), parsed, ROOT / "configs")
    choices = {k: v for k, v in composed.hydra.runtime.choices.items() if v is not None and not k.startswith("hydra")}
    plain, unresolved = _resolve(_without_hydra(composed))
    return Composed(plain, list(overrides), choices, where, problems + unresolved)


def recipe_files(config_dir: str | Path | None = None) -> dict[str, Path]:
    """Every recipe that `recipe=<name>` finds."""
    folders = [ROOT / "recipes", *(folder / "recipe" for folder in _user_folders(config_dir))]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def load_saved(path: Path) -> dict[str, Any]:
    """A `config.yaml` as a run wrote it, on the schema: unknown keys and wrong types are refused."""
    if not path.is_file():
        raise ConfigError(f"{path.resolve()}: not found. A run directory holds its settings in config.yaml.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), _load_yaml(path))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path.resolve()}: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    return _resolve(merged)[0]


# ---------------------------------------------------------------------------------------------------- overrides


def _parse(text: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(bad_syntax(text, error)) from None
    if override.is_sweep_override():
        raise ConfigError(bad_syntax(text))
    if override.key_or_group.startswith("hydra"):
        raise ConfigError(
            f"{text}: the run directory and the log are embedtrain's own; set run.dir. hydra.* keys are not read."
        )
    return override


def is_group(override: Override) -> bool:
    """Whether it picks a file (`loss=infonce`) and does not set a key (`loss.temperature=0.1`)."""
    if "." in (override.key_or_group or ""):
        return False
    group = str(override.key_or_group)
    value = override.value()
    options = value if isinstance(value, list) else [value]
    is_option = all(option is None or isinstance(option, str) for option in options)
    return is_option and (group == "recipe" or override.package is not None or _group_exists(group))


def _group_exists(group: str) -> bool:
    return (ROOT / "configs" / group).is_dir() or isinstance(ConfigStore.instance().repo.get(group), dict)


def as_forced(override: Override) -> str:
    """The override as Hydra gets it: a key is set whether it exists or not, for `validate` to judge."""
    text = str(override.input_line)
    if is_group(override) and override.value() is None:
        return f"~{override.get_key_element().lstrip('+~')}"  # no option of the group: `loss=null`
    if is_group(override) or text.startswith("~"):
        return text
    return "++" + text.lstrip("+")


def _load_recipe_file(override: Override) -> Override:
    """`recipe=path/to/mine.yaml` becomes an option of that name."""
    value = override.value()
    if override.key_or_group != "recipe" or not isinstance(value, str):
        return override
    if not value.endswith((".yaml", ".yml")):
        return override
    path = Path(value).expanduser()
    if not path.is_file():
        raise ConfigError(f"recipe={value}: there is no file {path.resolve()}.")
    _register(path, group="recipe")
    return _parse(f"recipe={path.stem}")


# --------------------------------------------------------------------------------------------------- registration


def _recipes_named(parsed: Sequence[Override]) -> list[str] | None:
    """The recipes that are chosen by name. None: all may be wanted, since one of the user's own builds on any of them."""
    chosen = [override.value() for override in parsed if override.key_or_group == "recipe"]
    names = [str(value) for value in chosen if value is not None]
    return names if all((ROOT / "recipes" / f"{name}.yaml").is_file() for name in names) else None


def _with_bases(names: Sequence[str]) -> list[Path]:
    """The files of recipes, and of those that they build on."""
    found: dict[Path, None] = {}
    waiting = [ROOT / "recipes" / f"{name}.yaml" for name in names]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found[path] = None
        # Names of its defaults list, by its lines: parsing is what takes the time.
        named = re.findall(r"^ *- *([\w-]+) *(?:#.*)?$", path.read_text(encoding="utf-8"), re.MULTILINE)
        waiting += [path.with_name(f"{name}.yaml") for name in named]
    return sorted(found)


@contextmanager
def _registered(folders: Sequence[Path], names: Sequence[str] | None) -> Iterator[None]:
    """Schema, recipes (those of `names` and what they build on; None: all) and the user's options in Hydra's store, and out
    of it again."""
    store = ConfigStore.instance()
    before = copy.deepcopy(store.repo)
    try:
        store.store(name="schema", node=Config)
        for path in sorted((ROOT / "recipes").glob("*.yaml")) if names is None else _with_bases(names):
            _register(path, group="recipe")
        for folder in folders:
            for path in sorted(folder.glob("*/**/*.yaml")):
                _register(path, group=path.parent.relative_to(folder).as_posix())
        GlobalHydra.instance().clear()
        yield
    finally:
        GlobalHydra.instance().clear()
        # Hydra's own plugins enter the store once per process, during the first composition: they stay.
        store.repo = before | {name: node for name, node in store.repo.items() if name.startswith("hydra")}


def _register(path: Path, *, group: str) -> None:
    # A recipe speaks of the whole config, also where its `# @package _global_` line was forgotten.
    header = re.search(r"^#\s*@package\s+(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    package = "_global_" if group == "recipe" else header[1] if header else None
    node = _load_yaml(path)
    ConfigStore.instance().store(group=group, name=path.stem, node=node, package=package, provider=str(path))


def _load_yaml(path: Path) -> DictConfig:
    try:
        node = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path.resolve()} is not valid YAML: {error}") from None
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path.resolve()}: expected `key: value` lines, got a {type(node).__name__}.")
    return node


def _user_folders(config_dir: str | Path | None) -> list[Path]:
    named = [str(config_dir)] if config_dir is not None else []
    named += [part for part in os.environ.get(CONFIG_PATH_VARIABLE, "").split(os.pathsep) if part]
    folders = [Path(name).expanduser() for name in named]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"--config-dir / {CONFIG_PATH_VARIABLE}: there is no folder {folder.resolve()}. Expected a folder with "
                "recipe/<name>.yaml, loss/<name>.yaml, ... in it."
            )
    return folders


def _register_saved(run: Path, parsed: list[Override]) -> str:
    """The saved config of a run as a primary config. Groups swapped on the command line replace its parts."""
    path = run / "config.yaml"
    saved = load_saved(path)
    swapped = {str(override.key_or_group): override.value() for override in parsed if is_group(override)}
    if "recipe" in swapped:
        raise ConfigError(f"--from-run {run} and recipe={swapped['recipe']}: choose one; either is a whole config.")
    for group in swapped:
        saved.pop(group, None)
    old = saved["run"].pop("dir")
    saved["run"]["name"] = _free_name(saved["run"]["name"], Path(old).parent)
    saved = _replace_prefix(saved, old, "${run.dir}")
    saved["run"]["dir"] = f"{Path(old).parent}/${{run.name}}"
    store = ConfigStore.instance()
    store.store(name="saved_run", node=OmegaConf.create(saved), provider=str(path))
    defaults: list[Any] = ["schema", "saved_run", *({group: option} for group, option in swapped.items()), "_self_"]
    store.store(name="repeat", node=OmegaConf.create({"defaults": defaults}), provider=str(path))
    return "repeat"


def _free_name(name: str, parent: Path) -> str:
    """`name-2`, `name-3`, ...: the first that has no directory yet."""
    stem = re.sub(r"-\d+$", "", name)
    number = 2
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


def _replace_prefix(node: Any, old: str, new: str) -> Any:
    """Paths inside the old run directory, as paths inside the new one."""
    if isinstance(node, dict):
        return {key: _replace_prefix(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace_prefix(value, old, new) for value in node]
    if isinstance(node, str) and (node == old or node.startswith(f"{old}/")):
        return new + node[len(old) :]
    return node


# ------------------------------------------------------------------------------------------------------ composing


def _compose_dropping_bad_values(primary: str, parsed: list[Override], problems: list[str]) -> DictConfig:
    """Compose; where one value cannot be taken, note the problem, leave it out and go on to find the others.

    Bad overrides are removed from `parsed`; bad keys of a recipe are removed from the store.
    """
    while True:
        lines = [as_forced(override) for override in parsed]
        try:
            return compose(primary, overrides=lines, return_hydra_config=True)
        except RecursionError:
            raise ConfigError(
                "the recipe builds on itself. To build on another recipe name it in `defaults` without its group: "
                "`- finetune`, not `- /recipe: finetune`."
            ) from None
        except HydraException as error:
            culprit = next((o for o, line in zip(parsed, lines, strict=True) if _is_about(error, line)), None)
            if culprit is not None:
                problems.append(bad_value(culprit, error))
                parsed.remove(culprit)
                continue
            new_place = re.match(r"Could not override '(\S+@\S+)'", str(error))
            unplaced = [o for o, line in zip(parsed, lines, strict=True) if new_place and line.startswith(new_place[1])]
            if unplaced:  # `source@data.sources.mine=jsonl` adds a part: as with keys, no `+` is needed
                parsed[parsed.index(unplaced[0])] = _parse(f"+{unplaced[0].input_line}")
                continue
            in_recipe = re.match(
                r"In 'recipe/(.+?)': (?:ConfigKeyError|ConfigAttributeError|ValidationError)", str(error)
            )
            found = _clean_recipe(in_recipe[1]) if in_recipe else []
            if not found:
                raise ConfigError("\n".join([*problems, explain(error)])) from None
            problems.extend(found)


def _is_about(error: Exception, line: str) -> bool:
    return isinstance(error, ConfigCompositionException) and str(error).startswith(f"Error merging override {line}")


def _clean_recipe(name: str) -> list[str]:
    """The problems of a recipe's keys in the frame; afterwards the stored recipe is without them."""
    stored = ConfigStore.instance().load(f"recipe/{name}.yaml")
    node, problems = bad_recipe_keys(stored.node, str(stored.provider))
    ConfigStore.instance().store(group="recipe", name=name, node=node, package="_global_", provider=stored.provider)
    return problems


def _defaults_list(primary: str, lines: list[str]) -> Any:
    loader = GlobalHydra.instance().config_loader()
    return loader.compute_defaults_list(config_name=primary, overrides=lines, run_mode=RunMode.RUN).defaults


def _without_hydra(composed: DictConfig) -> DictConfig:
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return composed


def _resolve(node: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """Plain data with every ${...} replaced, and the problems of those that cannot be. Missing values stay "???"."""
    problems: list[str] = []

    def plain(container: Any, key: Any) -> Any:
        if OmegaConf.is_missing(container, key):
            return MISSING
        try:
            value = container[key]
        except InterpolationToMissingValueError:
            return MISSING  # the value that it points to is reported itself
        except OmegaConfBaseException as error:
            why = str(error).splitlines()[0]
            if not any(problem.endswith(why) for problem in problems):  # others may point to this one
                problems.append(f"{container._get_full_key(key)}: {why}")
            return None
        if OmegaConf.is_dict(value):
            return {str(k): plain(value, k) for k in value}
        if OmegaConf.is_list(value):
            return [plain(value, i) for i in range(len(value))]
        return value

    return {str(key): plain(node, key) for key in node}, problems
