"""Did it get better, by how much, and how sure is that?"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from embedtrain.evaluation.comparison import interval, percent, result_size, signed
from embedtrain.evaluation.report.files import RunFiles
from embedtrain.evaluation.report.plots import interval_bar
from embedtrain.evaluation.report.words import DASH, minus
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.evaluation.statistics import Difference, compare

DEFAULT_RESAMPLES = 2000


def measured_changes(run: RunFiles) -> dict[str, list[Difference]]:
    """By evaluator, what was measured both before and after."""
    resamples = run.setting("evaluation.resamples") or DEFAULT_RESAMPLES
    return {
        name: compare(run.before[name], result, resamples=resamples)
        for name, result in run.after.items()
        if name in run.before
    }


def verdicts(run: RunFiles, changes: dict[str, list[Difference]]) -> str:
    if changes:
        return "".join(_verdict(name, run.after[name], found) for name, found in changes.items())
    if run.before or run.after:
        when = "after" if run.after else "before"
        missing = "before" if run.after else "after"
        figures = "; ".join(
            f"{escape(name)} {escape(result.primary)} {percent(result.score)}"
            for name, result in (run.after or run.before).items()
        )
        return (
            f'<section class="verdict"><p><strong>Measured only {when} training.</strong> {figures}. Without a figure '
            f"{missing} training nothing can be said about what training changed.</p></section>"
        )
    return (
        '<section class="verdict"><p><strong>Not evaluated.</strong> This run has no evaluation, so this page cannot say '
        "whether the model got better. Set <code>evaluation</code> (a BEIR folder, held-out pairs, scored sentence pairs)."
        "</p></section>"
    )


def _verdict(name: str, after: EvaluationResult, differences: Sequence[Difference]) -> str:
    difference = next((d for d in differences if d.metric == after.primary), None)
    if difference is None:
        return ""
    metric = f"{escape(difference.metric)} on {escape(name)}"
    went = f"from {percent(difference.before)} to {percent(difference.after)}"
    if difference.low is None or difference.high is None:
        kind, sentence = "", f"{metric} went {went}. No interval: the figure is not a mean over queries."
    elif difference.is_clear:
        kind = "better" if difference.change > 0 else "worse"
        verb = "rose" if difference.change > 0 else "fell"
        sentence = (
            f"{metric} {verb} {went}. The 95 % interval of the change, {interval(difference)}, leaves zero out: with other "
            f"queries of this kind the model would most likely be {kind} too."
        )
    else:
        kind = ""
        sentence = f"{metric} went {went}. The 95 % interval of the change, {interval(difference)}, holds zero: it may be chance."
    return (
        f'<section class="verdict {kind}"><p class="change">{minus(signed(difference.change))}</p>'
        f"<p>{minus(sentence)}</p></section>"
    )


def tables(run: RunFiles, changes: dict[str, list[Difference]]) -> str:
    if not changes:
        return ""
    tables = "".join(_table(name, run.after[name], found) for name, found in changes.items())
    return (
        f'<section><h2>Before and after</h2>{tables}<p class="soft small">Figures times 100. The interval comes from drawing '
        "the queries anew, with replacement; better and worse are shares of the queries.</p></section>"
    )


def _table(name: str, after: EvaluationResult, differences: Sequence[Difference]) -> str:
    edges = [0.0, *(edge for d in differences for edge in (d.low, d.high) if edge is not None)]
    reach = (min(edges), max(edges))
    columns = ["metric", "before", "after", "change"]
    if len(edges) > 1:
        columns += ["95 % interval", "around zero", "better", "worse"]
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    rows = "".join(_table_row(d, after.primary, reach, len(columns) > 4) for d in differences)
    return (
        f'<div class="scroll"><table><caption>{escape(name)}<span class="soft">{escape(result_size(after))}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _table_row(difference: Difference, primary: str, reach: tuple[float, float], with_intervals: bool) -> str:
    kind = ("better" if difference.change > 0 else "worse") if difference.is_clear else ""
    cells = [
        f"<td>{percent(difference.before)}</td><td>{percent(difference.after)}</td>",
        f'<td class="{kind}">{minus(signed(difference.change))}</td>',
    ]
    if with_intervals:
        bar = ""
        if difference.low is not None and difference.high is not None:
            bar = interval_bar(difference.change, difference.low, difference.high, reach)
        shares = (DASH if share is None else f"{share:.0%}" for share in (difference.better, difference.worse))
        cells += [f"<td>{minus(interval(difference) or DASH)}</td><td>{bar}</td>", *(f"<td>{s}</td>" for s in shares)]
    row = ' class="primary"' if difference.metric == primary else ""
    return f'<tr{row}><th scope="row">{escape(difference.metric)}</th>{"".join(cells)}</tr>'
