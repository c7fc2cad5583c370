"""The models that a backbone is made of: it is one, or it has two halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def models_of(backbone: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What names a model, by its full key: {"backbone": ...}, or {"backbone.encoder": ..., "backbone.llm": ...}."""
    halves = {f"backbone.{key}": node for key, node in backbone.items() if _is_component(node)}
    return halves or {"backbone": backbone}


def with_models(
    backbone: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """The backbone with `change(node)` merged over each of its models."""
    if not any(_is_component(node) for node in backbone.values()):
        return {**backbone, **change(backbone)}
    return {key: {**node, **change(node)} if _is_component(node) else node for key, node in backbone.items()}


def model_name(backbone: Mapping[str, Any]) -> str:
    """The names of its models, as a reader may look them up."""
    return " + ".join(str(node.get("name", "")).removeprefix("package://") for node in models_of(backbone).values())


def _is_component(node: Any) -> bool:
    return isinstance(node, Mapping) and "_target_" in node
