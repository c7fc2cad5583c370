"""report.html of a mining: what to know of the negatives before training on them.

In reading order: warnings, each with what to do; key figures and histograms of each source; which negatives may be answers;
rows to read; how they were mined; what the figures do not say. Needs nothing but a browser.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from html import escape
from typing import Any

from embedtrain.evaluation.report.document import document
from embedtrain.mining.audit.page.facts import limits, made_by, repeat
from embedtrain.mining.audit.page.figures import source_section, sources_table
from embedtrain.mining.audit.page.reading import examples
from embedtrain.mining.audit.page.verdict import verdict
from embedtrain.mining.audit.records import Audit


def render(audits: Mapping[str, Audit], facts: Mapping[str, Any]) -> str:
    """The page as one string. `facts`: see `write_audit`."""
    style = (importlib.resources.files("embedtrain.mining.audit.page") / "page.css").read_text(encoding="utf-8")
    sections = [
        _header(audits),
        verdict(audits),
        sources_table(audits),
        *(source_section(name, audit) for name, audit in audits.items()),
        *(examples(name, audit, len(audits) > 1) for name, audit in audits.items()),
        made_by(audits),
        repeat(facts),
        limits(audits),
    ]
    return document("Hard negatives: audit", sections, style)


def _header(audits: Mapping[str, Audit]) -> str:
    negatives = sum(audit.counts.negatives for audit in audits.values())
    queries = sum(audit.counts.queries_kept for audit in audits.values())
    sources = ", ".join(audits) if 0 < len(audits) <= 4 else f"{len(audits)} sources"
    return (
        f'<header><h1>Hard negatives of {escape(sources)}</h1><p class="over">What to know before training on them. '
        f"{negatives:,} negatives for {queries:,} queries.</p></header>"
    )
