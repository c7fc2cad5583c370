"""Every option of every group, in the place where it is used: it composes, its targets exist, and it lists every parameter."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from embedtrain.config.compose import ROOT, Composed, compose_config
from embedtrain.config.signatures import TargetError, signature
from embedtrain.config.validate import COLLECTIONS, COMPONENTS
from tests.helpers.parameters import parameters

FILES = sorted((ROOT / "configs").glob("*/**/*.yaml"))
IDS = [str(path.relative_to(ROOT / "configs")) for path in FILES]

# Where the options of a group are put that does not stand at the top of the config.
PLACES = {
    "source": "data.sources.x",
    "teacher": "teachers.x",
    "neighbourhoods": "data.neighbourhoods",
    "search": "miner.search",
    "rescorer": "miner.rescorer",
    "filter": "miner.filters.x",
    "refresh": "training.refresh",
}
FILTERS_OF_QUERIES = ("consistency", "minimum_positive")


def place_of(path: Path) -> str:
    """The key at which an option stands."""
    group = path.parent.name
    if group == "filter" and path.stem in FILTERS_OF_QUERIES:
        return "miner.query_filters.x"
    return PLACES.get(group, group)


@cache
def composed(path: Path) -> Composed:
    """A config for which the option was chosen as a user does."""
    group, place = path.parent.name, place_of(path)
    override = f"{group}={path.stem}" if place == group else f"{group}@{place}={path.stem}"
    return compose_config([*(["miner=top_k"] if place.startswith("miner.") else []), override])


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


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_an_option_composes(path: Path) -> None:
    assert not composed(path).problems


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_an_option_lists_every_parameter_of_a_target_that_exists(path: Path) -> None:
    """With all that it builds on (`defaults`) and puts into itself, as it stands in a config."""
    place = place_of(path)
    option: Any = composed(path).config
    for key in place.split("."):
        option = option[key]
    found = list(components(option))
    assert {node["_target_"] for node in components(load(path))} <= {node["_target_"] for node in found}
    assert found, f"{path} has no _target_"
    runtime = COMPONENTS.get(place, COLLECTIONS.get(place.rpartition(".")[0], COLLECTIONS.get(place, frozenset())))
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
def test_an_option_begins_by_saying_what_it_is_or_has_one_line(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") or lines[0].startswith("_target_")
