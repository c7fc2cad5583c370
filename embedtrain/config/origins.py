"""Where each value of a config came from: the schema, an option of a group, a recipe or the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

SCHEMA = "default"
COMMAND_LINE = "command line"


def trace(defaults: Iterable[Any], overrides: Iterable[Override], configs: Path) -> dict[str, str]:
    """Origins by full key. A key that is not listed has its origin from the nearest listed key above it, else "default".

    `defaults` is Hydra's final list of files in the order in which they were merged: the last one to set a key wins.
    """
    found: dict[str, str] = {}
    for item in defaults:
        if item.config_path is None or item.config_path in ("schema", "_self_") or item.config_path.startswith("hydra"):
            continue
        node = _load(item.config_path, configs)
        name = f"{item.config_path}.yaml" if "/" not in item.config_path else item.config_path
        prefix = f"{item.package}." if item.package else ""
        for key in leaves(node):
            found[prefix + key] = name
    for override in overrides:
        if override.is_delete():
            continue
        key = str(override.key_or_group)
        if key in found or "." in key or override.package is None:
            _set(found, key, override.value())
    return found


def _set(found: dict[str, str], key: str, value: Any) -> None:
    if isinstance(value, dict):
        for inner in leaves(value):
            found[f"{key}.{inner}"] = COMMAND_LINE
    else:
        found[key] = COMMAND_LINE


def origin(key: str, origins: dict[str, str]) -> str:
    """Where the value of `key` came from."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return SCHEMA


def tree(config: dict[str, Any], origins: dict[str, str]) -> list[str]:
    """The config as YAML lines with origins. A part says where most of it is from; a value says so where it differs."""
    rows = list(_rows(config, origins, "", None))
    width = min(64, max(len(text) for text, _ in rows))
    return [f"{text:<{width}}  # {where}" if where else text for text, where in rows]


def _rows(
    node: dict[str, Any], origins: dict[str, str], prefix: str, said: str | None
) -> Iterator[tuple[str, str | None]]:
    indent = "  " * prefix.count(".")
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            counted = Counter(origin(f"{key}.{inner}", origins) for inner in leaves(value))
            most = counted.most_common(1)[0][0]
            yield f"{indent}{name}:", most if most != said else None
            yield from _rows(value, origins, f"{key}.", most)
        else:
            where = origin(key, origins)
            yield f"{indent}{name}: {_as_yaml(value)}", where if where != said else None


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested mapping; an empty mapping and a list are values."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _load(path: str, configs: Path) -> dict[str, Any]:
    file = configs / f"{path}.yaml"
    node = OmegaConf.load(file) if file.exists() else ConfigStore.instance().load(f"{path}.yaml").node
    assert isinstance(node, DictConfig)
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "defaults"}
