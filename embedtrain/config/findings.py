"""What a rule finds: a problem, or a regret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """What was asked for and cannot be had."""

    text: str


@dataclass(frozen=True)
class Regret:
    """What works, and what the user may come to regret."""

    text: str


Finding = Problem | Regret
Rule = Callable[[dict[str, Any], int], Iterator[Finding]]


def kind_of(node: Any) -> str:
    """The class of a component, without its module."""
    return str((node or {}).get("_target_", "")).rpartition(".")[2]
