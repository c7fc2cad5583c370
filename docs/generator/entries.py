"""One option, or one part of InfoNCE, as a section of a page."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from docs.generator.docstring import Docstring
from docs.generator.markdown import fenced, prose, table
from docs.generator.options import Option, docstring, load
from embedtrain.config.compose import ROOT
from embedtrain.types import Needs


@dataclass(frozen=True)
class Names:
    """Where the words of a page lead to."""

    homes: Mapping[type, str]  # class -> option, or class name, under which it is explained
    others: Mapping[str, str]  # word -> address

    def __call__(self, text: str, *, here: type | None = None) -> str:
        """`text` with links. A word that many sentences use (Norm, View) is linked in code alone."""
        classes = {kind.__name__: anchor(home) for kind, home in self.homes.items() if kind is not here}
        return prose(text, {word: at for word, at in classes.items() if not word[1:].islower()} | dict(self.others))

    def link(self, kind: type) -> str:
        return f"[`{kind.__name__}`]({anchor(self.homes[kind])})"


def option_entry(option: Option, names: Names, *, facts: str, offered: Collection[str] = ()) -> str:
    """`facts`: what is known of it besides, for the line below the comment; `offered`: parameters that the program sets."""
    explained = names.homes.get(option.kind) == option.name
    made_of = _source(option.kind) if explained else names.link(option.kind)
    inside = dict.fromkeys(names.link(load(node["_target_"])) for _, _, node in option.parts)
    what = f"{made_of} with {' and '.join(inside)}" if inside else made_of
    where = f"[configs/{option.group}/{option.name}.yaml]({_up(option.path)})"
    found = docstring(option.kind)
    return _joined(
        f"### `{option.name}`",
        prose(option.comment, names.others),
        " · ".join(filter(None, (what, where, facts))),
        *(described(found, names, option.kind) if explained else ()),
        fenced(_without_target(option.settings), "yaml"),
        _meanings(found, names, offered) if explained else "",
    )


def part_entry(
    kind: type, where: str, name: str, node: Mapping[str, Any], names: Names, shown_by: Collection[str]
) -> str:
    """A modifier, or a source of further negatives: with the lines to write, those of an option that has it."""
    lines = yaml.safe_dump({name: dict(node)}, sort_keys=False, default_flow_style=None, width=1000).strip()
    written = "\n".join(["loss:", f"  {where}:", *(f"    {line}" for line in lines.splitlines())])
    seen = ", ".join(f"[`{option}`]({anchor(option)})" for option in shown_by)
    return _joined(
        f"### {kind.__name__}",
        f"{_source(kind)} · in {seen}",
        *described(docstring(kind), names, kind),
        fenced(written, "yaml"),
        _meanings(docstring(kind), names, ()),
    )


def described(found: Docstring, names: Names, kind: type) -> list[str]:
    """Summary, formulas, prose and cost."""
    blocks = [fenced(block.text, "text") if block.is_formula else names(block.text, here=kind) for block in found.body]
    cost = [f"*Cost:* {names(found.cost, here=kind)}"] if found.cost else []
    return [names(found.summary, here=kind), *blocks, *cost]


def _joined(*sections: str) -> str:
    return "\n\n".join(section for section in sections if section)


def needs_in_words(needs: Needs) -> str:
    """What the rows, the encoder and the run must have for a loss."""
    words = [word for word in ("scores", "labels") if getattr(needs, word)]
    words += [f"teacher `{name}`" for name in needs.teachers]
    words += [f"view `{name}`" for name in needs.views]
    words += [f"layers {', '.join(map(str, needs.layers))}"] if needs.layers else []
    words += [f"`pooling={needs.embedding}`"] if needs.embedding else []
    return ", ".join(words)


def anchor(heading: str) -> str:
    """Of a heading that is one word."""
    return f"#{heading.lower()}"


def _meanings(found: Docstring, names: Names, offered: Collection[str]) -> str:
    rows = [(f"`{name}`", names(text)) for name, text in found.parameters.items() if name not in offered]
    in_full = table(("setting", "meaning"), rows)
    return f"<details><summary>settings in full</summary>\n\n{in_full}\n\n</details>" if rows else ""


def _without_target(settings: str) -> str:
    """What a user may set. The class is named beside it."""
    return "\n".join(line for line in settings.splitlines() if not line.startswith("_target_:"))


def _source(kind: type) -> str:
    path = Path(inspect.getfile(kind))
    return f"[`{kind.__name__}`]({_up(path)})"


def _up(path: Path) -> str:
    """The address of a file of the repository, seen from docs/."""
    return f"../{path.relative_to(ROOT).as_posix()}"
