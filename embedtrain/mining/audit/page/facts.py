"""How the negatives were mined, how to repeat it, and what the page does not say."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import yaml

from embedtrain.evaluation.report.words import definitions, minus
from embedtrain.mining.audit.records import Audit
from embedtrain.mining.audit.warnings import recalls


def made_by(audits: Mapping[str, Audit]) -> str:
    """How the negatives were mined."""
    lists = []
    for name, audit in audits.items():
        # Short rows stand among the figures.
        facts = {key: value for key, value in audit.facts.items() if key != "short_rows"}
        if audit.scored_by != facts.get("model"):
            facts = {"scores by": f"{audit.scored_by}{', a rescorer' if audit.rescored else ''}", **facts}
        title = f"<h3>{escape(name)}</h3>" if len(audits) > 1 else ""
        lists.append(f"<div>{title}{definitions(flat(facts))}</div>")
    several = ' class="columns"' if len(lists) > 1 else ""
    return f"<section><h2>How they were mined</h2><div{several}>{''.join(lists)}</div></section>"


def flat(facts: Mapping[str, Any], inside: str = "") -> dict[str, str]:
    """Nested facts as one list.

    >>> flat({"search": {"kind": "exact", "found_all": True}, "seconds": 0.25541})
    {'search, kind': 'exact', 'search, found all': 'true', 'seconds': '0.255'}
    """
    found: dict[str, str] = {}
    for key, value in facts.items():
        name = (f"{inside}, {key}" if inside else str(key)).replace("_", " ")
        if isinstance(value, Mapping):
            found |= flat(value, name)
        elif value is None or isinstance(value, bool):
            found[name] = "" if value is None else str(value).lower()
        elif isinstance(value, float):
            found[name] = minus(f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}")
        else:
            found[name] = minus(f"{value:,}") if isinstance(value, int) else str(value)
    return found


def repeat(facts: Mapping[str, Any]) -> str:
    command, config = facts.get("command"), facts.get("config")
    parts = []
    if command:
        parts.append(f"<p>As it was started:</p><pre>{escape(str(command))}</pre>")
    if config:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        parts.append(f"<details><summary>Every setting (config.yaml)</summary><pre>{escape(text)}</pre></details>")
    return f"<section><h2>To repeat it</h2>{''.join(parts)}</section>" if parts else ""


def limits(audits: Mapping[str, Audit]) -> str:
    notes = [
        "How many negatives are answers is not known, only suspected. Scores share the errors of the model that gave them; "
        "copies, found by their words, are a lower bound.",
        "The histograms put the scores of all queries together. Training compares the documents of one query; of that the "
        "share of queries outranked speaks.",
    ]
    own = [name for name, audit in audits.items() if not audit.rescored and audit.scores is not None]
    if own:
        notes.append(
            f"The scores of {', '.join(own)} are those of the search. A model finds its own confusions hard, and cannot tell "
            "them from answers that nobody marked: a rescorer can (miner=rescored)."
        )
    for name, audit in audits.items():
        above = [one.negatives for one in audit.estimates if one.name.startswith("above_")]
        if above and not any(above):
            notes.append(
                f"{name}: no negative scores above a positive of its query. Where a filter took such candidates out, that says "
                "nothing of answers among those that are left."
            )
        if None in recalls(audit.facts.get("search") or {}):
            notes.append(f"{name}: the recall of the search was not measured.")
        if audit.counts.queries > audit.counts.queries_kept:
            notes.append(f"{name}: dropped queries are in no figure but their own count.")
    if any(audit.examples for audit in audits.values()):
        notes.append("Examples are drawn by the seed of the miner; long texts and long lists are cut, and say so.")
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section><h2>What this page does not say</h2><ul class="notes">{items}</ul></section>'
