"""How did training go?"""

from __future__ import annotations

from html import escape
from statistics import median
from typing import Any

from embedtrain.evaluation.report.files import RunFiles
from embedtrain.evaluation.report.plots import line_plot, short_number
from embedtrain.evaluation.report.words import count, duration


def key_facts(run: RunFiles) -> str:
    facts = {
        "steps": f"{max((p[-1][0] for p in run.series.values() if p), default=0):,}" if run.series else None,
        "queries per step": count(run.first_step.get("queries")),
        "negatives per query": count(_negatives(run.first_step)),
        "queries per second": _median(run, "train/queries_per_second"),
        "tokens per second": _median(run, "train/tokens_per_second"),
        "time in the loop": duration(run.seconds),
        "peak memory": _peak_memory(run),
    }
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value)
    return f'<dl class="facts">{tiles}</dl>' if tiles else ""


def curves(run: RunFiles) -> str:
    series = run.series
    lines: list[tuple[str, dict[str, Any], bool]] = [
        ("Loss", {"loss": series.get("train/loss")}, False),
        (
            "Similarity",
            {
                "positives": series.get("train/positive_similarity"),
                "hardest negatives": series.get("train/hardest_negative_similarity"),
            },
            False,
        ),
        ("Evaluation", _evaluation_lines(run), False),
        ("Learning rate", {"learning rate": series.get("train/learning_rate")}, True),
        ("Gradient norm", {"gradient norm": series.get("train/gradient_norm")}, True),
        ("Queries per second", {"queries per second": series.get("train/queries_per_second")}, True),
    ]
    plots = [
        line_plot(title, {name: points for name, points in group.items() if points}, zero=zero)
        for title, group, zero in lines
        if any(points and len(points) > 1 for points in group.values())
    ]
    if not plots:
        return "<section><h2>Training</h2><p>No curves: the run logged fewer than two steps.</p></section>"
    broken = "".join(
        f"<p><strong>{escape(name)}</strong> was not a finite number at {count} of the logged steps.</p>"
        for name, count in run.not_finite.items()
    )
    return f'<section><h2>Training, step by step</h2>{broken}<div class="plots">{"".join(plots)}</div></section>'


def _evaluation_lines(run: RunFiles) -> dict[str, list[tuple[int, float]]]:
    """The primary metric of each evaluator over steps, x 100, from before the first step to after the last."""
    last = max((points[-1][0] for points in run.series.values()), default=0)
    lines = {}
    for name, result in (run.after or run.before).items():
        points = dict(run.series.get(f"eval/{name}/{result.primary}", []))
        if name in run.before:
            points.setdefault(0, run.before[name].metrics.get(result.primary, result.score))
        if name in run.after and last:
            points[last] = result.score
        lines[f"{name} {result.primary}"] = [(step, 100 * value) for step, value in sorted(points.items())]
    return lines


def _negatives(facts: dict[str, Any]) -> float | None:
    kinds = ("hard_negatives", "in_batch_negatives", "cross_device_negatives")
    return sum(facts[kind] for kind in kinds) if all(kind in facts for kind in kinds) else None


def _median(run: RunFiles, name: str) -> str | None:
    points = run.series.get(name)
    return short_number(float(f"{median(value for _, value in points):.3g}")) if points else None


def _peak_memory(run: RunFiles) -> str | None:
    points = run.series.get("train/peak_memory_gb")
    return f"{max(value for _, value in points):.1f} GB" if points else None
