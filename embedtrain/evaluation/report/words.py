"""Values as words."""

from __future__ import annotations

import re
from html import escape
from typing import Any

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"  # no value


def definitions(facts: dict[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
        if value not in (None, "", [], {})
    )
    return f'<dl class="list">{rows}</dl>'


def component(node: Any) -> str | None:
    """`InfoNCE, temperature 0.05, terms [q2d]`: the class and every setting that is not null."""
    if not isinstance(node, dict):
        return None if node is None else str(node)
    kind = str(node.get("_target_", "")).rpartition(".")[2]
    return ", ".join(
        [kind, *(f"{key} {inline(value)}" for key, value in node.items() if value is not None and key != "_target_")]
    )


def inline(value: Any) -> str | None:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inline(inner)}" for key, inner in value.items() if inner is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(str(inner) for inner in value) + "]"
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def quoted(value: str | None) -> str | None:
    return f"“{value}”" if value else None


def with_unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{value:,} {unit}"


def count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str | None:
    if not seconds:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def minus(text: str) -> str:
    """A minus sign in place of the hyphen of a negative number."""
    return re.sub(r"(?<![\w-])-(?=\d)", MINUS, text)
