"""Rows to read."""

from __future__ import annotations

from html import escape

from embedtrain.mining.audit.records import Audit, Example, ShownNegative, ShownText
from embedtrain.mining.audit.words import beginning, number

_EXCERPT = 180  # characters of a text that stand open
_KINDS = {
    "suspicious": (
        "The most suspicious",
        "Their negatives score most above their positives (▲: above every positive). Are they answers, or is the positive wrong?",
    ),
    "random": ("Drawn at random", "Are the negatives no answers, and near enough to learn from?"),
}


def examples(name: str, audit: Audit, several: bool) -> str:
    if not audit.examples:
        return ""
    of = f": {escape(name)}" if several else ""
    groups = []
    for kind, (title, question) in _KINDS.items():
        items = "".join(_example(example) for example in audit.examples if example.drawn == kind)
        if items:
            groups.append(f'<h3>{title}</h3><p class="soft small">{question}</p><ol class="examples">{items}</ol>')
    return f"<section><h2>Examples to read{of}</h2>{''.join(groups)}</section>"


def _example(example: Example) -> str:
    best = max((shown.score for shown in example.positives if shown.score is not None), default=None)
    lines = [
        *(_line("positive", shown, "yes") for shown in example.positives),
        _more(example.num_positives - len(example.positives), "positive"),
        *(_line(_place(shown), shown, "above" if _is_above(shown, best) else "no") for shown in example.negatives),
        _more(example.num_negatives - len(example.negatives), "negative"),
    ]
    task = ""
    if example.instruction:
        task = f'<p class="small task"><span class="label">instruction:</span> {escape(example.instruction)}</p>'
    return (
        f'<li><div class="query">{_text(example.query)}</div>{task}'
        f'<table class="texts"><tbody>{"".join(lines)}</tbody></table></li>'
    )


def _place(shown: ShownNegative) -> str:
    return f"rank {shown.rank:,}, {shown.reason}" if shown.rank else shown.reason


def _is_above(shown: ShownNegative, best: float | None) -> bool:
    return best is not None and shown.score is not None and shown.score > best


def _line(what: str, shown: ShownText, kind: str) -> str:
    mark = '<span class="mark" role="img" aria-label="above every positive">▲</span> ' if kind == "above" else ""
    return (
        f'<tr class="{kind}"><td class="score">{mark}{number(shown.score)}</td><td class="what">{escape(what)}</td>'
        f"<td>{_text(shown)}</td></tr>"
    )


def _more(count: int, what: str) -> str:
    if not count:
        return ""
    return f'<tr class="more"><td></td><td></td><td class="soft">and {count:,} more {what}{"s" * (count > 1)}</td></tr>'


def _text(shown: ShownText) -> str:
    """A text, its beginning where it is long; what is behind opens."""
    start = beginning(shown.text, _EXCERPT)
    if start == shown.text:
        return f"<p>{escape(start)}</p>"
    rest = shown.characters - len(shown.text)
    left = f' <span class="soft">… and {rest:,} more characters</span>' if rest else ""
    return (
        f'<details><summary>{escape(start)} <span class="open">… more</span></summary>'
        f"<p>{escape(shown.text[len(start) :].lstrip())}{left}</p></details>"
    )
