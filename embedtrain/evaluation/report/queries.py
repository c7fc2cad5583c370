"""Which queries changed, and what do they look like?"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from embedtrain.evaluation.comparison import signed
from embedtrain.evaluation.report.plots import change_plot
from embedtrain.evaluation.report.words import minus
from embedtrain.evaluation.result import EvaluationResult

QUERIES_SHOWN = 10


def changed_queries(name: str, before: EvaluationResult, after: EvaluationResult) -> str:
    metric = after.primary
    old, new = ((result.per_query or {}).get(metric, {}) for result in (before, after))
    if not old or old.keys() != new.keys():
        return ""
    changes = {query: new[query] - old[query] for query in new}
    if not any(changes.values()):
        return f"<section><h2>Queries: {escape(name)}</h2><p>No query changed its {escape(metric)}.</p></section>"
    harmed = [query for query in sorted(changes, key=lambda q: changes[q])[:QUERIES_SHOWN] if changes[query] < 0]
    improved = [query for query in sorted(changes, key=lambda q: -changes[q])[:QUERIES_SHOWN] if changes[query] > 0]
    better, worse = (sum(sign * change > 0 for change in changes.values()) for sign in (1, -1))
    return (
        f"<section><h2>Queries: {escape(name)}</h2><p>Of {len(changes):,} queries {better:,} got better by "
        f"{escape(metric)}, {worse:,} got worse, {len(changes) - better - worse:,} stayed. Each query's change, from the most "
        "harmed to the most improved:</p>"
        + change_plot(f"Change of {metric} by query", list(changes.values()))
        + _query_list("Most improved", improved, changes, before, after)
        + _query_list("Most harmed", harmed, changes, before, after)
        + "</section>"
    )


def _query_list(
    title: str, queries: Sequence[str], changes: dict[str, float], before: EvaluationResult, after: EvaluationResult
) -> str:
    if not queries:
        return f'<h3>{title}</h3><p class="soft">None.</p>'
    items = "".join(_query_item(query, changes[query], before, after) for query in queries)
    return f'<h3>{title}</h3><ol class="queries">{items}</ol>'


def _query_item(query: str, change: float, before: EvaluationResult, after: EvaluationResult) -> str:
    kind = "better" if change > 0 else "worse"
    old, new = before.examples.get(query), after.examples.get(query)
    if old is None or new is None:
        texts, ranks = f'<p class="query">{escape(query)}</p>', ""
    else:
        ranks = f'<p class="rank">rank {_rank(old.rank)} → {_rank(new.rank)}</p>'
        wrong = old if change > 0 else new
        instead = "before" if change > 0 else "now"
        texts = f'<p class="query">{escape(new.query)}</p>' + _labelled("relevant", wrong.relevant)
        if wrong.found != wrong.relevant:
            texts += _labelled(f"found first {instead}", wrong.found)
    return f'<li><div><p class="pill {kind}">{minus(signed(change))}</p>{ranks}</div><div>{texts}</div></li>'


def _labelled(label: str, text: str) -> str:
    return f'<p class="small"><span class="label">{label}:</span> {escape(text)}</p>'


def _rank(rank: int | None) -> str:
    return "none" if rank is None else str(rank)
