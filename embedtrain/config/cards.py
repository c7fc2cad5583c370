"""What each recipe says of itself, read from the files alone: nothing is composed, so it answers at once."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from embedtrain.config.compose import recipe_files


def cards(config_dir: str | Path | None = None) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Of each recipe: the comment on top, line by line, and its card with what it takes from a recipe that it builds on."""
    files = recipe_files(config_dir)
    return {name: (headline(path.read_text(encoding="utf-8")), _card(name, files)) for name, path in files.items()}


def headline(text: str) -> list[str]:
    """The comment on top of a recipe: what it is, its command."""
    lines = text.splitlines()
    if lines and lines[0].startswith("# @package"):
        lines = lines[1:]
    return [line.lstrip("# ").rstrip() for line in takewhile(lambda line: line.startswith("#"), lines)]


def _card(name: str, files: dict[str, Path]) -> dict[str, Any]:
    node = yaml.safe_load(files[name].read_text(encoding="utf-8")) or {}
    card: dict[str, Any] = {}
    for base in node.get("defaults") or []:
        if isinstance(base, str) and base in files and base != name:
            card |= _card(base, files)
    return card | (node.get("card") or {})
