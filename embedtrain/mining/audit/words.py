"""Figures of an audit as words."""

from __future__ import annotations

from embedtrain.evaluation.report.words import DASH, MINUS
from embedtrain.mining.audit.records import Warned

TIMES = "\N{MULTIPLICATION SIGN}"


def share(part: float, whole: float) -> str:
    """12.3%. What is there is never said to be none."""
    return percent(part / whole) if whole else DASH


def percent(value: float) -> str:
    """
    >>> percent(0.1234), percent(0.0001), percent(0.0), percent(0.9999), percent(1.0)
    ('12.3%', '< 0.1%', '0%', '> 99.9%', '100%')
    """
    if 0 < value < 0.001:
        return "< 0.1%"
    if 0.999 < value < 1:
        return "> 99.9%"
    return f"{100 * value:.1f}%" if 0 < value < 1 else f"{100 * value:.0f}%"


def number(value: float | None) -> str:
    """A score: as many digits as tell scores apart, with a minus sign.

    >>> number(0.0164), number(0.517), number(12.34), number(12345.6), number(None)
    ('0.0164', '0.517', '12.3', '12,346', '–')
    """
    if value is None:
        return DASH
    size = abs(value)
    digits = 4 if 0 < size < 0.1 else 3 if size < 10 else 1 if size < 10_000 else 0
    return f"{value:,.{digits}f}".replace("-", MINUS)


def figure(warned: Warned) -> str:
    """12.3%, or 3.5×."""
    return percent(warned.value) if warned.is_share else f"{warned.value:.1f}{TIMES}"


def span(first: int, last: int) -> str:
    """3, or 3–5."""
    return f"{first:,}" if first == last else f"{first:,}{DASH}{last:,}"


def beginning(text: str, length: int) -> str:
    """At most `length` characters, cut behind a word where there is one in the second half."""
    if len(text) <= length:
        return text
    cut = text.rfind(" ", length // 2, length + 1)
    return text[:length] if cut < 0 else text[:cut]
