"""The parameters of a class as Python sees them, those behind `**common: Unpack[...]` included."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """By name. A class that hands keyword arguments on takes those of the class above it as well."""
    known: dict[str, inspect.Parameter] = {}
    makers = (
        [vars(kind)["__init__"] for kind in target.__mro__ if "__init__" in vars(kind)]
        if inspect.isclass(target)
        else []
    )
    for maker in makers[:-1] or [target]:  # the last one is object's
        own = inspect.signature(maker).parameters.values()
        hands_on = any("Unpack[" in str(p.annotation) for p in own)
        kinds = (inspect.Parameter.KEYWORD_ONLY, *(() if known else (inspect.Parameter.POSITIONAL_OR_KEYWORD,)))
        known |= {p.name: p for p in own if p.kind in kinds and p.name != "self"}
        if not hands_on:
            break
    return known
