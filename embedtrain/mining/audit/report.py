"""An audit as files, and as a few lines for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedtrain.data.writers.files import staged
from embedtrain.mining.audit.page import render
from embedtrain.mining.audit.records import Audit
from embedtrain.mining.audit.words import figure, number, percent, share


def write_audit(folder: Path, audits: Mapping[str, Audit], facts: Mapping[str, Any]) -> list[Path]:
    """report.json, with every figure, and report.html, to look at; whole or not at all.

    audits   by source
    facts    of the whole: `command` as it was typed, `config` as a mapping; others stand in report.json alone

    Raises DataError when the disk does not take them.
    """
    tree = {"sources": {name: audit.to_json() for name, audit in audits.items()}, "facts": facts}
    paths = (folder / "report.json", folder / "report.html")
    with staged(*paths) as (as_json, as_html):
        text = json.dumps(_plain(tree), ensure_ascii=False, indent=1, allow_nan=False)
        as_json.write_text(text + "\n", encoding="utf-8", errors="replace")
        as_html.write_text(render(audits, facts), encoding="utf-8", errors="replace")
    return list(paths)


def summary_lines(audit: Audit) -> list[str]:
    """Key figures, then each warning with what to do."""
    counts, order, scores = audit.counts, audit.order, audit.scores
    kept = f"{counts.queries_kept:,}" + (f" of {counts.queries:,}" if counts.queries_kept < counts.queries else "")
    each = f", {counts.negatives / counts.queries_kept:.1f} each" if counts.queries_kept else ""
    short = sum(audit.lengths[:-1])
    fewer = f"; {short:,} queries have fewer than {counts.num_negatives}" if short else ""
    lines = [f"{counts.negatives:,} negatives for {kept} queries{each}{fewer}"]
    if scores and scores.positive_quantiles and scores.negative_quantiles:
        lines.append(
            f"median score {number(scores.positive_quantiles[1])} of positives, {number(scores.negative_quantiles[1])} of "
            f"negatives, by {audit.scored_by}"
        )
    warned = {one.name for one in audit.warnings}
    above = audit.share_of("above_mean")
    if above is not None and "above_mean" not in warned:
        lines.append(f"{percent(above)} of the negatives score above the mean positive of their query")
    if order.queries and "outranked" not in warned:
        lines.append(f"{share(order.every_positive_below, order.queries)} of the queries have one above every positive")
    for one in audit.warnings:
        lines += [f"warning: {figure(one)} {one.text}", f"  -> {one.remedy}"]
    return lines


def _plain(value: Any) -> Any:
    """What JSON has: no NaN, no infinity, no numbers of numpy, no paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
