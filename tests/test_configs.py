"""Every option of every group: its targets exist, and it lists every parameter."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from embedtrain.config.compose import ROOT, compose_config
from embedtrain.config.signatures import TargetError, signature
from embedtrain.config.validate import COLLECTIONS, COMPONENTS
from tests.helpers.parameters import parameters

FILES = sorted((ROOT / "configs").glob("*/**/*.yaml"))
IDS = [str(path.relative_to(ROOT / "configs")) for path in FILES]


def load(path: Path) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def components(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from components(value)


def inherited(path: Path) -> dict[str, Any]:
    """The keys of the options that an option builds on, and those that they put into it."""
    node = load(path)
    keys: dict[str, Any] = {}
    for default in node.pop("defaults", []):
        if isinstance(default, str) and default != "_self_":
            keys |= inherited(path.with_name(f"{default}.yaml"))
        elif isinstance(default, dict):
            keys |= {place.partition("@")[2].partition(".")[0]: option for place, option in default.items()}
    return keys | node


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_an_option_lists_every_parameter_of_a_target_that_exists(path: Path) -> None:
    found = list(components(inherited(path)))
    assert found, f"{path} has no _target_"
    group = path.parent.name
    runtime = COMPONENTS.get(group, COLLECTIONS.get(f"{group}s", frozenset()))
    for node in found:
        module, _, name = node["_target_"].rpartition(".")
        real = set(parameters(getattr(importlib.import_module(module), name))) - runtime
        try:
            assert set(signature(node["_target_"]).parameters) - runtime == real
        except TargetError as error:
            pytest.fail(str(error))
        assert set(node) - {"_target_"} == real, "list every parameter, so that any of them can be set"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_the_values_of_an_option_are_the_defaults_of_its_class_or_said_to_differ(path: Path) -> None:
    """Two sets of defaults would drift apart. An option that builds on another is there to differ."""
    if "defaults" in load(path):
        return
    for node in components(load(path)):
        module, _, name = node["_target_"].rpartition(".")
        for key, parameter in parameters(getattr(importlib.import_module(module), name)).items():
            if key in node and parameter.default is not inspect.Parameter.empty:
                default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                # An empty mapping is the place where things are added by name.
                assert node[key] == default or (node[key] == {} and default is None), key


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_an_option_composes(path: Path) -> None:
    group, option = path.parent.name, path.stem
    places = {"source": "source@data.sources.x", "teacher": "teacher@teachers.x"}
    override = f"{places.get(group, group)}={option}"
    composed = compose_config([override])
    assert not composed.problems


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_an_option_begins_by_saying_what_it_is_or_has_one_line(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") or lines[0].startswith("_target_")
