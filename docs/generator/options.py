"""The options of configs/: each YAML with the class behind it, what it needs, and which recipes choose it."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from docs.generator.docstring import Docstring
from docs.generator.recipes import composed
from embedtrain.config.build import build
from embedtrain.config.compose import ROOT, compose_config, recipe_files
from embedtrain.types import Needs, needs_of

POOLING = "embedtrain.pooling."


@dataclass(frozen=True)
class Option:
    """`group=name` on the command line."""

    group: str
    name: str

    @property
    def path(self) -> Path:
        return ROOT / "configs" / self.group / f"{self.name}.yaml"

    @cached_property
    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()

    @cached_property
    def comment(self) -> str:
        """What the file says of itself on top."""
        return " ".join(line.lstrip("# ").rstrip() for line in takewhile(_is_comment, self.lines))

    @cached_property
    def settings(self) -> str:
        """The file below its comment."""
        return "\n".join(self.lines[sum(1 for _ in takewhile(_is_comment, self.lines)) :]).strip()

    @cached_property
    def node(self) -> dict[str, Any]:
        """With what it builds on."""
        own = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        return compose_config([f"{self.group}={self.name}"]).config[self.group] if "defaults" in own else own

    @property
    def names_its_class(self) -> bool:
        """Whether the file itself says of which class it is, and does not leave that to another option."""
        return any(line.startswith("_target_:") for line in self.lines)

    @cached_property
    def kind(self) -> type[Any]:
        return load(self.node["_target_"])

    @cached_property
    def needs(self) -> Needs:
        """Of a loss."""
        return needs_of(build(self.node))

    @cached_property
    def parts(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(modifiers or extra, name, settings) of what stands inside a contrastive loss, at any depth."""
        return list(_parts(self.node))

    @cached_property
    def inherited(self) -> dict[str, str]:
        """What its defaults list puts inside it: {"inner": "infonce"}, relative to its own place."""
        listed = yaml.safe_load(self.path.read_text(encoding="utf-8")).get("defaults", [])
        entries = [entry for entry in listed if not isinstance(entry, str)]
        return {str(place).partition("@")[2]: name for entry in entries for place, name in entry.items()}


def options(group: str) -> dict[str, Option]:
    return {path.stem: Option(group, path.stem) for path in sorted((ROOT / "configs" / group).glob("*.yaml"))}


def load(target: str) -> type[Any]:
    """The class at a dotted path."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def docstring(kind: type) -> Docstring:
    """Of a class; where its module says more than one line (a head whose arithmetic is longer), that before it."""
    own, module = Docstring.of(kind), Docstring.parse(inspect.cleandoc(sys.modules[kind.__module__].__doc__ or ""))
    return replace(own, body=(*module.body, *own.body)) if module.body and kind.__module__.startswith(POOLING) else own


def recipes_with(group: str, known: Mapping[str, Option]) -> dict[str, list[str]]:
    """The recipes that choose each option, in a stage or inside another option too."""
    found: dict[str, list[str]] = {name: [] for name in known}
    for recipe, choices in _choices().items():
        for name in dict.fromkeys(chosen(choices, group, known)):
            found[name].append(recipe)
    return found


@cache
def _choices() -> dict[str, dict[str, str]]:
    """Group -> option, of each recipe."""
    return {recipe: composed(recipe).choices for recipe in recipe_files()}


def chosen(choices: Mapping[str, str], group: str, known: Mapping[str, Option]) -> Iterator[str]:
    """The options of a group that a run chooses: all but those that an option brings along by its defaults list."""
    places = {key.partition("@")[2] or group: name for key, name in choices.items() if re.match(rf"{group}(@|$)", key)}
    for place, name in places.items():
        around = [outer for outer in places if place.startswith(f"{outer}.")]
        outer = max(around, key=len, default=None)
        brought = {} if outer is None else known[places[outer]].inherited
        if name in known and (outer is None or brought.get(place.removeprefix(f"{outer}.")) != name):
            yield name


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def _parts(node: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in ("modifiers", "extra"):
            yield from ((key, name, part) for name, part in (value or {}).items() if part is not None)
        else:
            yield from _parts(value)
