"""What went wrong while a config was put together, in the words of the user's command line."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from embedtrain.config.schema import Config, settings

# Names that users bring along from other trainers, and what they are called here.
ELSEWHERE = {
    "lr": "optim.learning_rate",
    "batch_size": "training.global_batch_size",
    "train_batch_size": "training.global_batch_size",
    "per_device_train_batch_size": "training.per_device_batch_size",
    "gradient_accumulation_steps": "training.accumulation_steps",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "steps": "training.max_steps",
    "num_steps": "training.max_steps",
    "bf16": "training.mixed_precision=bf16",
    "fp16": "training.mixed_precision=fp16",
    "mini_batch_size": "training.chunk_tokens",
    "chunk_size": "training.chunk_tokens",
    "max_grad_norm": "training.clip_norm",
    "eval_steps": "training.evaluate_every",
    "save_steps": "training.save_every",
    "logging_steps": "training.log_every",
    "save_total_limit": "training.keep_checkpoints",
    "lr_scheduler_type": "optim.schedule",
    "warmup_ratio": "optim.warmup_share",
    "max_length": "encoder.max_query_length and encoder.max_document_length",
    "max_seq_length": "encoder.max_query_length and encoder.max_document_length",
    "model": "backbone.name",
    "model_name": "backbone.name",
    "model_name_or_path": "backbone.name",
    "output_dir": "run.dir",
    "seed": "run.seed",
    "scale": "loss.temperature (which is 1 / scale)",
    "train_data": "data.path",
    "report_to": "trackers",
}


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """ " Did you mean 'x'?" or nothing."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def unknown_key(key: str, siblings: Iterable[str], *, owner: str = "") -> str:
    """The message for a key that nothing reads. `siblings`: what may stand in its place; `owner`: whose they are."""
    siblings = sorted(siblings)
    parent, _, name = key.rpartition(".")
    hint = _from_elsewhere(name) or did_you_mean(name, siblings) or _in_another_part(name)
    where = owner or parent or "the config"
    listed = ", ".join(siblings)
    return f"{key}: {where} has no key {name!r}.{hint or f' It has: {listed}.'}"


def _from_elsewhere(name: str) -> str:
    return f" Here that is {ELSEWHERE[name]}." if name in ELSEWHERE else ""


def _in_another_part(name: str) -> str:
    by_name = {key.rpartition(".")[2]: key for key in settings()}
    close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.75)
    return f" Did you mean {by_name[close[0]]!r}?" if close else ""


def bad_syntax(text: str, error: Exception | None = None) -> str:
    """The message for an argument that is not key=value."""
    if text.startswith("-"):
        return f"{text}: there is no such flag. Settings are written key=value; `embedtrain --help` lists the flags."
    if "=" not in text and not text.startswith("~"):
        return f"{text}: expected key=value (recipe=quickstart, optim.learning_rate=1e-5)."
    if error is None:
        return (
            f"{text}: one value is expected here. A list is written [a,b], a text with a comma in quotes within quotes: "
            "'key=\"a,b\"'. Several values one after another would be a sweep, and each trial of it its own launch."
        )
    key, _, value = text.partition("=")
    why = str(error).splitlines()[0]
    return (
        f"{text}: the value {value!r} cannot be read ({why}). A text with spaces, brackets, commas or colons needs "
        f"quotes within quotes: '{key}=\"...\"'."
    )


def bad_value(override: Override, error: Exception) -> str:
    """The message for a value that cannot be taken, on the command line."""
    if override.is_delete():
        return f"{override.input_line}: a key of the frame cannot be taken out. Set it to a value, or to null."
    return wrong_type(str(override.key_or_group), override.value(), error.__cause__ or error)


def wrong_type(key: str, value: Any, error: BaseException) -> str:
    kinds = expected_kinds()
    if key in kinds:
        return f"{key}: expected {kinds[key]}, got {value!r}.{yaml_no(value)}"
    parts = [name for name in kinds if name.startswith(f"{key}.")]
    if parts:
        inner = ", ".join(name.removeprefix(f"{key}.") for name in parts)
        return f"{key}: expected its keys ({inner}), got {value!r}. Write {parts[0]}=..."
    parent = key.rpartition(".")[0]
    if parent in kinds:
        return f"{key}: {parent} is {kinds[parent]} and has no keys below it."
    return f"{key}: {str(error).splitlines()[0]}"


def yaml_no(value: Any) -> str:
    return ' YAML reads a bare no as false: write "no".' if value in (False, "False") else ""


def expected_kinds() -> dict[str, str]:
    """Every setting's type in words."""
    return {key: _words(_hint(key)) for key in settings()}


def _hint(key: str) -> Any:
    kind: Any = Config
    for name in key.split("."):
        kind = typing.get_type_hints(kind)[name]
    return kind


def _words(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if kind in plain:
        return plain[kind]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return f"a list of {'numbers' if args[0] in (int, float) else 'texts'}"
    if origin is dict:
        return "a mapping"
    return " or ".join(_words(arg) for arg in args)


def bad_recipe_keys(node: DictConfig, path: str) -> tuple[DictConfig, list[str]]:
    """All keys of a recipe that the frame refuses, each as a message; and the recipe without them."""
    problems: list[str] = []
    kept = OmegaConf.create({"defaults": node.defaults} if "defaults" in node else {})
    schema = OmegaConf.structured(Config)
    for key, value in _entries(node):
        try:
            OmegaConf.update(schema, key, value, force_add=False)
        except OmegaConfBaseException as error:
            problems.append(f"{path}: {_recipe_problem(key, value, error)}")
        else:
            OmegaConf.update(kept, key, value, force_add=True)
    return kept, problems


def _entries(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Keys of the frame with their raw values; what is below a component is one value."""
    found: list[tuple[str, Any]] = []
    components = {key for key, setting in settings().items() if setting.default_factory is not None}
    for key in node:
        full = f"{prefix}{key}"
        if full == "defaults":
            continue
        value = node._get_node(key)
        plain = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value._value()
        if isinstance(plain, dict) and full not in components:
            found += _entries(value, f"{full}.")
        else:
            found.append((full, plain))
    return found


def _recipe_problem(key: str, value: Any, error: OmegaConfBaseException) -> str:
    known = settings()
    parent, _, _ = key.rpartition(".")
    level = {
        name.removeprefix(f"{parent}." if parent else "").partition(".")[0]
        for name in known
        if not parent or name.startswith(f"{parent}.")
    }
    if key not in known and level:
        return unknown_key(key, level)
    top = key.partition(".")[0]
    if key not in known and top not in {name.partition(".")[0] for name in known}:
        return unknown_key(top, {name.partition(".")[0] for name in known})
    return wrong_type(key, value, error)


def explain(error: HydraException) -> str:
    """Any other refusal of Hydra's."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error)
    twice = re.match(r"(\S+) appears more than once in the final defaults list", text)
    if twice:
        return f"+{twice[1]}=...: {twice[1]} has an option already; write {twice[1]}=... to choose another."
    absent = re.match(r"Could not delete from config. '(\S+)' does not exist", text)
    if absent:
        return f"~{absent[1]}: there is no {absent[1]} in this config, so nothing to take out."
    return text


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = sorted(error.options or [])
    if not group:
        return f"{option}: there is no such file among the configs."
    hint = did_you_mean(option, options)
    own = " One of your own: recipe=path/to/file.yaml." if group == "recipe" else ""
    return f"{group}={option}: {group} has no option {option!r}.{hint} It has: {', '.join(options)}.{own}"
