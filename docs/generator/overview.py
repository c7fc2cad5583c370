"""The tables on top of the pages: every option in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from docs.generator.entries import anchor, needs_in_words
from docs.generator.markdown import first_sentence, papers, prose, table, without_papers
from docs.generator.options import Option, docstring, recipes_with
from docs.generator.order import Family
from embedtrain.config.build import build


def losses_table(families: Iterable[Family], known: Mapping[str, Option], homes: Mapping[type, str]) -> str:
    used = recipes_with("loss", known)
    rows: list[Sequence[str]] = []
    for family in families:
        rows.append((f"**{family.title}**", *[""] * 5))
        for option in (known[name] for name in family.options):
            rows.append(
                (*_named(option), needs_in_words(option.needs), _cost(option, homes), _recipes(used[option.name]))
            )
    return table(("loss", "what", "paper", "needs", "cost", "recipes"), rows)


def objectives_table(family: Family, known: Mapping[str, Option], homes: Mapping[type, str]) -> str:
    used = recipes_with("objective", known)
    rows = [
        (*_named(known[name]), " and ".join(known[name].kind.trains), _cost(known[name], homes), _recipes(used[name]))
        for name in family.options
    ]
    return table(("objective", "what", "paper", "trains", "cost", "recipes"), rows)


def poolings_table(families: Iterable[Family], known: Mapping[str, Option]) -> str:
    used = recipes_with("pooling", known)
    rows = [
        (*_named(known[name]), *_reads_and_gives(known[name]), _recipes(used[name]))
        for family in families
        for name in family.options
    ]
    return table(("pooling", "what", "paper", "reads", "gives", "recipes"), rows)


def cited(option: Option) -> list[str]:
    """Links to the papers that an option names itself, else to those of its class."""
    found = docstring(option.kind)
    of_class = " ".join([found.summary, *(block.text for block in found.body)]) if option.names_its_class else ""
    return papers(option.comment) or papers(of_class)


def _named(option: Option) -> tuple[str, str, str]:
    line = prose(first_sentence(without_papers(option.comment)))
    return f"[`{option.name}`]({anchor(option.name)})", line, ", ".join(cited(option))


def _cost(option: Option, homes: Mapping[type, str]) -> str:
    home = homes[option.kind]
    if home != option.name:
        return f"as [`{home}`]({anchor(home)})"
    return prose(first_sentence(docstring(option.kind).cost)).removesuffix(".")


def _recipes(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}](../recipes/{name}.yaml)" for name in names)


def _reads_and_gives(option: Option) -> tuple[str, str]:
    """What a head asks the backbone for, and what it makes of it."""
    small = {"hidden_size": 8, "num_layers": 2, "num_routes": 4, "vocab_size": 16, "special_ids": (0,)}
    head = build(option.node, lm_head=nn.Linear(8, 16), punctuation_ids=(1,), **small)
    reads = "all layers" if getattr(head, "needs_layers", False) else "last layer"
    if getattr(head, "needs_router", False):
        reads += ", routers"
    if getattr(head, "multi_vector", False):
        return reads, "several vectors"
    if hasattr(head, "search_vectors"):
        return reads, "a Gaussian"
    return reads, "weights of words" if getattr(head, "as_is", False) else "a vector"
