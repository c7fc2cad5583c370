"""The one place where a `_target_` becomes an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate

from embedtrain.config.signatures import signature


def build(node: Mapping[str, Any], **runtime: Any) -> Any:
    """The object that a component of a validated config describes.

    `runtime`: what the program offers besides the config (a pooling is told the hidden size); the component gets those that
    its signature names. It gets plain dicts and lists, never OmegaConf's.
    """
    target = str(node["_target_"])
    takes = signature(target, allow=[target.partition(".")[0]])
    offered = {name: value for name, value in runtime.items() if name in takes.parameters or takes.open}
    return instantiate(dict(node), _convert_="all", **offered)
