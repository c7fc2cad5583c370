"""Before and after as a table that fits a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embedtrain.evaluation.result import EvaluationResult
from embedtrain.evaluation.statistics import Difference, compare

HEADER = ("", "before", "after", "change", "95 % interval", "better", "worse")


def comparison_table(
    before: Mapping[str, EvaluationResult],
    after: Mapping[str, EvaluationResult],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> str:
    """All figures that both sides have, x 100, primary metrics marked, with the interval of the change where there is one.

    held_out (300 queries, 5,183 documents)
                     before   after  change    95 % interval  better  worse
      ndcg@10 *       64.51   67.20   +2.69  [+1.02, +4.41]    24 %   11 %
    """
    blocks = []
    for name, result in after.items():
        if name in before:
            differences = compare(before[name], result, resamples=resamples, seed=seed)
            blocks.append(f"{name}{result_size(result)}\n{_table(differences, result.primary)}")
    return "\n".join(blocks)


def _table(differences: Sequence[Difference], primary: str) -> str:
    rows = [HEADER, *(_row(difference, primary) for difference in differences)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(difference: Difference, primary: str) -> tuple[str, ...]:
    return (
        difference.metric + (" *" if difference.metric == primary else ""),
        percent(difference.before),
        percent(difference.after),
        signed(difference.change),
        interval(difference) or "-",
        "-" if difference.better is None else f"{difference.better:.0%}",
        "-" if difference.worse is None else f"{difference.worse:.0%}",
    )


def percent(value: float) -> str:
    """64.51 for 0.6451, as the field writes it."""
    return f"{100 * value:.2f}"


def signed(value: float) -> str:
    text = f"{100 * value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def interval(difference: Difference) -> str | None:
    if difference.low is None or difference.high is None:
        return None
    return f"[{signed(difference.low)}, {signed(difference.high)}]"


def result_size(result: EvaluationResult) -> str:
    """ " (300 queries, 5,183 documents)", from what the evaluator tells of itself."""
    kinds = ("queries", "documents", "pairs")
    sizes = [f"{result.details[f'num_{kind}']:,} {kind}" for kind in kinds if f"num_{kind}" in result.details]
    return f" ({', '.join(sizes)})" if sizes else ""
