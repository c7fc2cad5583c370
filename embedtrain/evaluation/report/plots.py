"""Small plots as inline SVG: no script, no network, colours from the page's style sheet, readable without seeing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from embedtrain.evaluation.report.words import MINUS

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 28
MOST_POINTS = 240  # more are drawn as the mean and the range of neighbours
MOST_HINTS = 60

Points = Sequence[tuple[float, float]]
Format = Callable[[float], str]


def line_plot(title: str, lines: Mapping[str, Points], *, zero: bool = False, form: Format | None = None) -> str:
    """Lines over steps, with their values as hints under the pointer and in words for a screen reader.

    lines: name -> (step, value); names are shown when there are several.
    zero: let the axis begin at zero.
    """
    lines = {name: points for name, points in lines.items() if points}
    form = form or short_number
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points] + ([0.0] if zero else [])
    x = axis(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    ticks = nice_ticks(min(values), max(values))
    y = axis(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_grid(ticks, y, form), _step_axis(min(steps), max(steps), x)]
    for number, points in enumerate(lines.values(), start=1):
        parts.append(_line(points, x, y, number, form))
    words = "; ".join(
        f"{name}: {form(p[0][1])} at step {p[0][0]:,.0f}, {form(p[-1][1])} at step {p[-1][0]:,.0f}"
        for name, p in lines.items()
    )
    names = legend(list(lines)) if len(lines) > 1 else ""
    return f"<figure><figcaption>{escape(title)}{names}</figcaption>{svg(title, words, parts, HEIGHT)}</figure>"


def interval_bar(change: float, low: float, high: float, reach: tuple[float, float]) -> str:
    """An interval around a change on an axis over `reach`, with a mark at zero."""
    width, middle = 150, 11
    x = axis(*reach, 5, width - 5)
    kind = "better" if low > 0 else "worse" if high < 0 else "unclear"
    return (
        f'<svg class="interval {kind}" viewBox="0 0 {width} 22" width="{width}" height="22" aria-hidden="true">'
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="1" y2="21"/>'
        f'<line class="range" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}"/>'
        f'<circle cx="{x(change):.1f}" cy="{middle}" r="4"/></svg>'
    )


def change_plot(title: str, changes: Sequence[float]) -> str:
    """Each query's change, from the most harmed to the most improved: how many moved, and how far."""
    width, height, columns = 940, 150, 300
    ordered = sorted(changes)
    columns = min(columns, len(ordered))
    groups = [ordered[len(ordered) * i // columns : len(ordered) * (i + 1) // columns] for i in range(columns)]
    means = [math.fsum(group) / len(group) for group in groups]
    reach = max(abs(ordered[0]), abs(ordered[-1])) or 1.0
    y = axis(-reach, reach, height - 8, 8)
    step = (width - LEFT) / columns
    bars = [
        f'<rect class="{"better" if mean > 0 else "worse"}" x="{LEFT + i * step:.2f}" width="{step * 0.86:.2f}" '
        f'y="{min(y(mean), y(0)):.2f}" height="{abs(y(mean) - y(0)):.2f}"/>'
        for i, mean in enumerate(means)
        if mean
    ]
    labels = [
        f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{signed_points(value)}</text>'
        for value in (reach, 0.0, -reach)
    ]
    base = f'<line class="zero" x1="{LEFT}" x2="{width}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>'
    words = f"{sum(c > 0 for c in changes)} queries better, {sum(c < 0 for c in changes)} worse, of {len(changes)}"
    return f"<figure>{svg(title, words, [*labels, *bars, base], height, width)}</figure>"


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def short_number(value: float) -> str:
    """1,250 or 0.35 or 2e-05: as many digits as an axis needs."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:.4g}"


def signed_points(value: float) -> str:
    """A change of a fraction in points: +0.25 -> +25."""
    return "0" if value == 0 else f"{100 * value:+.0f}".replace("-", MINUS)


def axis(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """From a value to a place on the page: `low` at `start`, `high` at `stop`."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def svg(title: str, words: str, parts: Sequence[str], height: float, width: float = WIDTH) -> str:
    """A picture, and what it shows in words."""
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}. {escape(words)}">'
        f"{''.join(parts)}</svg>"
    )


def _grid(ticks: Sequence[float], y: Callable[[float], float], form: Format) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{form(tick)}</text>'
        for tick in ticks
    )


def _step_axis(first: float, last: float, x: Callable[[float], float]) -> str:
    ticks = [tick for tick in nice_ticks(first, last) if first <= tick <= last and tick == round(tick)]
    return "".join(
        f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in ticks
    )


def _line(points: Points, x: Callable[[float], float], y: Callable[[float], float], number: int, form: Format) -> str:
    band = ""
    if len(points) > MOST_POINTS:
        size = math.ceil(len(points) / MOST_POINTS)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        points = [(math.fsum(s for s, _ in g) / len(g), math.fsum(v for _, v in g) / len(g)) for g in groups]
        edge = [(s, max(v for _, v in g)) for (s, _), g in zip(points, groups, strict=True)]
        edge += [(s, min(v for _, v in g)) for (s, _), g in reversed(list(zip(points, groups, strict=True)))]
        band = f'<polygon class="band line{number}" points="{_path(edge, x, y)}"/>'
    few = len(points) <= 12
    every = max(1, len(points) // MOST_HINTS)
    dots = "".join(
        f'<circle class="{"dot" if few else "hint"} line{number}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="{3 if few else 6}">'
        f"<title>step {step:,.0f}: {form(value)}</title></circle>"
        for step, value in points[::every]
    )
    return f'{band}<polyline class="line line{number}" points="{_path(points, x, y)}"/>{dots}'


def _path(points: Points, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)


def legend(names: Sequence[str]) -> str:
    """Names in the colours of line1, line2, ..."""
    keys = "".join(f'<span class="key line{i}">{escape(name)}</span>' for i, name in enumerate(names, start=1))
    return f'<span class="legend">{keys}</span>'
