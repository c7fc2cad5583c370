"""The one place where a `_target_` becomes an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate


def build(node: Mapping[str, Any], **runtime: Any) -> Any:
    """The object that a component of a validated config describes.

    `runtime`: what the program adds to its parameters. Components get plain dicts and lists, never OmegaConf's.
    """
    return instantiate(dict(node), _convert_="all", **runtime)
