"""Where each value of a config came from: the schema, an option of a group, a recipe or the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

SCHEMA = "schema"
COMMAND_LINE = "command line"


def trace(defaults: Iterable[Any], overrides: Iterable[Override], configs: Path) -> dict[str, str]:
    """Origins by full key. A key that is not listed has its origin from the nearest listed key above it, else "schema".

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
