"""Histograms and bars as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from embedtrain.evaluation.report.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    axis,
    legend,
    nice_ticks,
    short_number,
    svg,
)
from embedtrain.evaluation.report.words import minus
from embedtrain.mining.audit.words import number, share

_WIDE, _TALL = 940, 290
_MOST_SHARES = 9  # above bars
_LETTER = 7.5  # width, with room between names

Axis = Callable[[float], float]


def histograms(title: str, edges: Sequence[float], groups: Mapping[str, tuple[Sequence[int], float | None]]) -> str:
    """Several groups over the same bins, each as shares of its own, so that a small group is seen beside a large one.

    groups: name -> (count of each bin, median), which stands as a dotted line. A group without counts has a name only.
    """
    x = axis(edges[0], edges[-1], LEFT, _WIDE - RIGHT)
    shares = [[count / max(sum(counts), 1) for count in counts] for counts, _ in groups.values()]
    ticks = nice_ticks(0, max(max(values) for values in shares))
    y = axis(0, ticks[-1], _TALL - BOTTOM, TOP)
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{_WIDE - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.3g}%</text>'
        for tick in ticks
    ]
    parts += _value_axis(edges, x, _TALL, 8)
    parts += [_outline(edges, values, x, y, place) for place, values in enumerate(shares, start=1) if any(values)]
    parts += [
        f'<line class="median line{place}" x1="{x(median):.1f}" x2="{x(median):.1f}" y1="{TOP}" y2="{y(0):.1f}"/>'
        for place, (_, median) in enumerate(groups.values(), start=1)
        if median is not None
    ]
    for i in range(len(edges) - 1):
        hint = ", ".join(f"{name} {share(c[i], sum(c))} ({c[i]:,})" for name, (c, _) in groups.items())
        parts.append(
            f'<rect class="bin" x="{x(edges[i]):.1f}" y="{TOP}" width="{x(edges[i + 1]) - x(edges[i]):.1f}" '
            f'height="{_TALL - BOTTOM - TOP}"><title>{number(edges[i])} to {number(edges[i + 1])}: {escape(hint)}</title>'
            "</rect>"
        )
    names = [f"{name}, median {number(median)}" for name, (_, median) in groups.items()]
    picture = svg(title, "; ".join(names), parts, _TALL, _WIDE)
    return f'<figure class="wide"><figcaption>{escape(title)}{legend(names)}</figcaption>{picture}</figure>'


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], of: str) -> str:
    """One group, with what lies below zero in another colour. `of`: what is counted, for the hints."""
    total = sum(counts)
    x = axis(edges[0], edges[-1], RIGHT, WIDTH - RIGHT)
    y = axis(0, max(counts), HEIGHT - BOTTOM, TOP)
    parts = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        hint = f"{number(low)} to {number(high)}: {count:,} {of}, {share(count, total)}"
        parts.append(
            f'<rect class="{"worse" if high <= 0 else "bar"}" x="{x(low) + 0.5:.1f}" width="{x(high) - x(low) - 1:.1f}" '
            f'y="{y(count):.1f}" height="{y(0) - y(count):.1f}"><title>{escape(hint)}</title></rect>'
        )
    parts.append(f'<line class="zero" x1="{RIGHT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    parts += _value_axis(edges, x, HEIGHT, 5)
    below = sum(count for high, count in zip(edges[1:], counts, strict=False) if high <= 0)
    words = f"from {number(edges[0])} to {number(edges[-1])}, {share(below, total)} below zero"
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg(title, words, parts, HEIGHT)}</figure>"


def bars(title: str, counts: Mapping[str, int], of: str) -> str:
    """A bar for each name with its share above it. `of`: what is counted, for the hints."""
    total = sum(counts.values())
    y = axis(0, max(counts.values()) / total, HEIGHT - BOTTOM, TOP + 18)
    room = (WIDTH - 2 * RIGHT) / len(counts)
    width = min(0.72 * room, 60)
    every = math.ceil(_LETTER * max(map(len, counts)) / room)  # bar has room for its name
    parts = [f'<line class="zero" x1="{RIGHT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>']
    for place, (name, count) in enumerate(counts.items()):
        middle, top = RIGHT + (place + 0.5) * room, y(count / total)
        parts.append(
            f'<rect class="bar" x="{middle - width / 2:.1f}" width="{width:.1f}" y="{top:.1f}" height="{y(0) - top:.1f}">'
            f"<title>{escape(name)}: {count:,} {escape(of)}, {share(count, total)}</title></rect>"
        )
        if place % every == 0:
            parts.append(_centred(middle, HEIGHT - 8, name))
        if count and len(counts) <= _MOST_SHARES:
            percent = share(count, total) if count / total < 0.01 else f"{100 * count / total:.0f}%"
            parts.append(_centred(middle, top - 5, percent))
    words = "; ".join(f"{name}: {share(count, total)}" for name, count in counts.items())
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg(title, words, parts, HEIGHT)}</figure>"


def _value_axis(edges: Sequence[float], x: Axis, height: float, about: int) -> list[str]:
    ticks = [tick for tick in nice_ticks(edges[0], edges[-1], about) if edges[0] <= tick <= edges[-1]]
    return [_centred(x(tick), height - 8, minus(short_number(tick))) for tick in ticks]


def _centred(x: float, y: float, words: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(words)}</text>'


def _outline(edges: Sequence[float], values: Sequence[float], x: Axis, y: Axis, place: int) -> str:
    points = [(edges[0], 0.0)]
    for i, value in enumerate(values):
        points += [(edges[i], value), (edges[i + 1], value)]
    points.append((edges[-1], 0.0))
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    return f'<polygon class="area line{place}" points="{path}"/><polyline class="outline line{place}" points="{path}"/>'
