"""A component's docstring, taken apart. Its form is the same everywhere:

One line: what it does.

    formula

Author et al. YEAR (arXiv:...). How it relates to its siblings.
Cost: products and memory, in words.

param    meaning, unit
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass

_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?::| ) +(?P<meaning>\S.*)")


@dataclass(frozen=True)
class Block:
    """A paragraph, its lines joined; or a formula, its lines as they are."""

    text: str
    is_formula: bool = False


@dataclass(frozen=True)
class Docstring:
    summary: str
    body: tuple[Block, ...]
    cost: str  # "" where none is named
    parameters: dict[str, str]  # name -> meaning

    @property
    def formulas(self) -> list[str]:
        return [block.text for block in self.body if block.is_formula]

    @classmethod
    def of(cls, kind: type) -> Docstring:
        return cls.parse(inspect.cleandoc(kind.__doc__ or ""), inspect.signature(kind).parameters)

    @classmethod
    def parse(cls, text: str, names: Collection[str] = ()) -> Docstring:
        """`names`: the parameters; a last paragraph that begins with one of them is their table."""
        paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]
        parameters = _parameters(paragraphs[-1], names) if len(paragraphs) > 1 else {}
        summary, *rest = paragraphs[:-1] if parameters else paragraphs or [""]
        body: list[Block] = []
        cost = ""
        for paragraph in rest:
            for block in _blocks(paragraph):
                if block.text.startswith("Cost: "):
                    cost = block.text.removeprefix("Cost: ")
                else:
                    body.append(block)
        return cls(_joined(summary.splitlines()), tuple(body), cost, parameters)


def _blocks(paragraph: str) -> list[Block]:
    """Indented lines are a formula, "Cost:" begins a block of its own, and all else is prose."""
    found: list[list[str]] = []
    for line in paragraph.splitlines():
        begins = not found or line.startswith("Cost: ") or _is_indented(line) != _is_indented(found[-1][0])
        if begins:
            found.append([])
        found[-1].append(line)
    return [
        Block(inspect.cleandoc("\n" + "\n".join(lines)), True) if _is_indented(lines[0]) else Block(_joined(lines))
        for lines in found
    ]


def _parameters(paragraph: str, names: Collection[str]) -> dict[str, str]:
    """The table of parameters, or {} where this is none. A line that is indented goes on with the one above."""
    found: dict[str, list[str]] = {}
    for line in paragraph.splitlines():
        entry = _ENTRY.match(line)
        if _is_indented(line) and found:
            found[next(reversed(found))].append(line)
        elif entry and not set(entry["names"].split(", ")) - set(names):
            found[entry["names"]] = [entry["meaning"]]
        else:
            return {}
    meanings = {keys: _joined(lines) for keys, lines in found.items()}
    return {name: meaning for keys, meaning in meanings.items() for name in keys.split(", ")}


def _is_indented(line: str) -> bool:
    return line.startswith("    ")


def _joined(lines: list[str]) -> str:
    return re.sub(r"(?<=\S) +", " ", " ".join(line.strip() for line in lines))
