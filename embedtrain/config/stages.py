"""The stages of a run: its settings with the differences of each stage merged over them, in the order of the file."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from embedtrain.config.models import models_of

# Keys of the whole run, which a stage shares with all others.
SHARED = ("card", "run", "export", "trackers", "allow_targets", "stages")
# One model goes through all stages. Everything else of an encoder may change on the way.
SAME_MODEL = ("name", "weights", "revision", "trust_remote_code")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def stage_configs(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each stage by name; {"": config} for a run without stages.

    A stage's component with another `_target_` replaces that of the run as a whole; one with the same, or without, is merged
    key by key. A stage that names an objective has no loss, and the reverse. What is measured before the first stage and
    after the last one is measured around another stage where that stage says so itself.
    """
    named = {name: node for name, node in (config.get("stages") or {}).items() if node is not None}
    if not named:
        return {"": config}
    found = {}
    for number, (name, node) in enumerate(named.items()):
        node = node if isinstance(node, dict) else {}
        merged = _merged({**config, "stages": {}}, node)
        for key, other in (("objective", "loss"), ("loss", "objective")):
            if node.get(key) and not node.get(other):
                merged[other] = {}
        if merged["objective"] and "auxiliary" not in node:
            merged["auxiliary"] = {}
        asked = node.get("evaluation") or {}
        for when, applies in (("before", number == 0), ("after", number == len(named) - 1)):
            if not applies and when not in asked:
                merged["evaluation"][when] = False
        merged["run"]["dir"] = str(PurePath(config["run"]["dir"]) / "stages" / name)
        found[name] = merged
    return found


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    if over.get("_target_", base.get("_target_")) != base.get("_target_"):
        return copy.deepcopy(over)
    return copy.deepcopy(base) | {key: _merged(base.get(key), value) for key, value in over.items()}


def stage_problems(config: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the stages as such; their settings are checked like those of a run."""
    for name, node in (config.get("stages") or {}).items():
        if node is None:
            continue
        if not _NAME.fullmatch(name):
            yield f"stages.{name}: a stage is a folder too: expected letters, digits, - and _ in its name."
        if not isinstance(node, dict):
            yield f"stages.{name}: expected the settings that differ in this stage, got {node!r}."
            continue
        for key in SHARED:
            if key in node:
                yield f"stages.{name}.{key}: belongs to the whole run; set {key} there."
        for place, model in models_of(config["backbone"]).items():
            asked = _at(node, place)
            for key in SAME_MODEL:
                if key in asked and asked[key] != model.get(key):
                    yield (
                        f"stages.{name}.{place}.{key}={asked[key]!r}: one model goes through all stages, each starting from the "
                        f"weights of the one before. Set {place}.{key} for the run, or train another run on the exported model."
                    )
        training = node.get("training") or {}
        if (
            training.get("mixed_precision", config["training"]["mixed_precision"])
            != config["training"]["mixed_precision"]
        ):
            yield (
                f"stages.{name}.training.mixed_precision: one process has one precision. Set "
                "training.mixed_precision for the run."
            )


def stage_regrets(config: dict[str, Any]) -> Iterator[str]:
    """What works, and may be regretted."""
    configs = stage_configs(config)
    for name, settings in list(configs.items())[:-1]:
        for place, model in models_of(settings["backbone"]).items():
            dtype = model.get("dtype", "float32")
            if model.get("lora") and dtype != "float32":
                yield (
                    f"stages.{name}.{place}.dtype={dtype}: at its end the adapters are added to weights in {dtype}, which "
                    f"rounds what they learned. {place}.dtype=float32 keeps it."
                )


def _at(node: dict[str, Any], place: str) -> dict[str, Any]:
    """What a stage says at a dotted key; nothing where it says nothing."""
    for key in place.split("."):
        node = node.get(key) or {}
    return node
