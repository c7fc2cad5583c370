"""Whether each number of a recipe says where it is from."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

_TAG = re.compile(r"\b(published|derived|assumed)\b", re.IGNORECASE)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def untagged(text: str) -> list[str]:
    """The numbers, as "line: text", that no comment calls published, derived or assumed.

    A comment counts for the numbers on its line, and, in the block of lines above a key or behind the key, for all that is in it.
    What is on the card was published by what it is.
    """
    lines = text.splitlines()
    root = yaml.compose(text)
    return [f"{line + 1}: {lines[line].strip()}" for line in dict.fromkeys(_of(root, lines, False))]


def _of(node: yaml.Node, lines: list[str], tagged: bool) -> Iterator[int]:
    if isinstance(node, yaml.ScalarNode):
        line = node.start_mark.line
        if node.tag in _NUMBERS and not tagged and not _tagged(lines[line]):
            yield line
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _of(item, lines, tagged)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "card" and key.start_mark.column == 0:
                continue
            line = key.start_mark.line
            yield from _of(value, lines, tagged or _tagged(lines[line]) or _tagged(_above(lines, line)))


def _above(lines: list[str], line: int) -> str:
    """The comment right above a line."""
    block = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        block.append(lines[line])
    return " ".join(block)


def _tagged(text: str) -> bool:
    _, _, comment = text.partition("#")
    return _TAG.search(comment) is not None
