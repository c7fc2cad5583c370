"""Plain text, as docstrings and comments have it, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_CODE = re.compile(r"(`[^`]+`)")
_SOURCES = (  # what is cited, and where it is
    (re.compile(r"arXiv:(\d{4}\.\d{4,5})"), r"https://arxiv.org/abs/\1"),
    (re.compile(r"doi (10\.\d{4,}/[^\s),;]+[^\s),;.])"), r"https://doi.org/\1"),
    (re.compile(r"(jmlr\.org/papers/\w+/\w+)"), r"https://www.\1.html"),
)


def prose(text: str, names: Mapping[str, str] | None = None) -> str:
    """Citations become links, and so do `names` (word -> address). Angle brackets stay what they are."""
    known = names or {}
    return "".join(_code(part, known) if _CODE.fullmatch(part) else _linked(part, known) for part in _CODE.split(text))


def _code(text: str, names: Mapping[str, str]) -> str:
    return f"[{text}]({names[text[1:-1]]})" if text[1:-1] in names else text


def _linked(text: str, names: Mapping[str, str]) -> str:
    text = re.sub(r"([<>])", r"\\\1", text)
    if names:
        known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        text = re.sub(rf"(?<![\w./=])({known})(?![\w/=]|\.\w)", lambda found: f"[{found[1]}]({names[found[1]]})", text)
    for pattern, address in _SOURCES:
        text = pattern.sub(rf"[\g<0>]({address})", text)
    return text


def papers(text: str) -> list[str]:
    """Links to what a text cites, in its order."""
    found: dict[int, str] = {}
    for pattern, address in _SOURCES:
        for match in pattern.finditer(text):
            name = match[1] if "arXiv" in match[0] else match[0].partition(" ")[0].partition("/")[0]
            found[match.start()] = f"[{name}]({match.expand(address)})"
    return list(dict.fromkeys(found[place] for place in sorted(found)))


def without_papers(text: str) -> str:
    """A text for a table that has the papers in a column of their own."""
    for pattern, _ in _SOURCES:
        text = re.sub(rf"(?:, )?{pattern.pattern}(?:, section [\d.]+\d)?", "", text)
    return re.sub(r" \(\)", "", text.replace("(, ", "("))


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[\w)\]}'][.]) (?=[A-Z'])", text, maxsplit=1)[0]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```" if text else ""
