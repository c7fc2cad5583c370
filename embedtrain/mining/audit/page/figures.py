"""The figures of one source, and of several side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote

from embedtrain.evaluation.report.words import DASH, MINUS, definitions
from embedtrain.mining.audit.page.plots import bars, histogram, histograms
from embedtrain.mining.audit.records import Audit
from embedtrain.mining.audit.words import percent, share, span

_MOST_BARS = 40


def source_section(name: str, audit: Audit) -> str:
    parts = [_tiles(audit), _scores(audit), _rows(audit), _estimates(audit), _hubs(audit), _left_out(audit)]
    return f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{"".join(parts)}</section>'


def _tiles(audit: Audit) -> str:
    counts, order, above = audit.counts, audit.order, audit.share_of("above_mean")
    facts = {
        "queries": _of(counts.queries_kept, counts.queries),
        "rows": _of(counts.rows_kept, counts.rows),
        "documents searched": f"{counts.documents:,}",
        "negatives": f"{counts.negatives:,}",
        f"per query, of {counts.num_negatives}": _each(audit),
        "median rank": f"{audit.ranks.median:,}" if audit.ranks.median else None,
        "above the mean positive": None if above is None else percent(above),
        "queries outranked": share(order.every_positive_below, order.queries) if order.queries else None,
    }
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value)
    return f'<dl class="facts even">{tiles}</dl>'


def _scores(audit: Audit) -> str:
    scores = audit.scores
    if scores is None:
        return "<h3>Scores</h3><p>Neither positives nor negatives have scores.</p>"
    groups = {
        "positives": (scores.positives, _median(scores.positive_quantiles)),
        "negatives": (scores.negatives, _median(scores.negative_quantiles)),
    }
    plot = histograms("Share of positives and of negatives by score", scores.edges, groups)
    without = {"positives": scores.positives_without, "negatives": scores.negatives_without}
    missing = ", ".join(f"{count:,} {what}" for what, count in without.items() if count)
    missing = f" Without a score: {missing}." if missing else ""
    by = f"Scored by {escape(audit.scored_by)}{', a rescorer' if audit.rescored else ''}."
    return f'<h3>Scores</h3>{plot}<p class="soft small">{by}{missing}</p>'


def _rows(audit: Audit) -> str:
    """Query by query: who ranks first, how deep negatives lie, how many there are."""
    order, counts = audit.order, audit.counts
    plots, sentences = [], []
    if order.queries:
        title = f"Queries by highest positive {MINUS} highest negative"
        plots.append(histogram(title, order.edges, order.margins, "queries"))
        sentences.append(
            f"In {order.every_positive_below:,} of {order.queries:,} queries "
            f"({share(order.every_positive_below, order.queries)}) a negative scores above every positive, in "
            f"{order.some_positive_below:,} ({share(order.some_positive_below, order.queries)}) above some positive."
        )
    if audit.ranks.negatives:
        bins = zip(audit.ranks.first, audit.ranks.last, audit.ranks.negatives, strict=True)
        plots.append(bars("Negatives by rank", {span(first, last): count for first, last, count in bins}, "negatives"))
    if sum(audit.lengths[:-1]):
        plots.append(bars("Queries by number of negatives", _grouped(audit.lengths), "queries"))
    elif counts.queries_kept:
        sentences.append(f"Every query has {counts.num_negatives} negatives.")
    facts = {
        "positives": f"{counts.positives:,}",
        "several positives": _at_most(
            audit, counts.queries_of_several_positives, counts.most_positives_of_a_query, "each"
        ),
        "sibling rows (the same query)": _at_most(
            audit, counts.queries_of_several_rows, counts.most_rows_of_a_query, "rows each"
        ),
        "answers that the corpus lacks": _of(counts.positives_missing, counts.documents_that_answer),
        "documents": f"{counts.documents_read:,} read, {counts.documents:,} of them different and searched",
        "why negatives were taken": ", ".join(f"{name} {count:,}" for name, count in audit.reasons.items()),
        "found by no search": f"{audit.ranks.without:,}" if audit.ranks.without else None,
    }
    words = f"<p>{' '.join(sentences)}</p>" if sentences else ""
    return f'<h3>Query by query</h3><div class="plots">{"".join(plots)}</div>{words}{definitions(facts)}'


def _grouped(lengths: Sequence[int]) -> dict[str, int]:
    """Counts by number; in groups of equal width where that would be too many bars."""
    width = -(-len(lengths) // _MOST_BARS)
    return {
        span(start, min(start + width, len(lengths)) - 1): sum(lengths[start : start + width])
        for start in range(0, len(lengths), width)
    }


def _estimates(audit: Audit) -> str:
    rows = [
        [
            f'<span class="wrap">{escape(estimate.what)} <span class="soft small">{escape(estimate.basis)}</span></span>',
            f"{estimate.negatives:,}",
            f"{estimate.of:,}",
            DASH if estimate.share is None else percent(estimate.share),
            f"{estimate.queries:,}",
        ]
        for estimate in audit.estimates
    ]
    columns = ["A negative may be an answer, since it ...", "negatives", "of", "share", "queries"]
    note = "Each basis alone: they overlap, and none is the truth."
    return f'<h3>Suspected false negatives</h3>{table(columns, rows)}<p class="soft small">{note}</p>'


def _hubs(audit: Audit) -> str:
    hubs, counts = audit.hubs, audit.counts
    if not hubs.top:
        return ""
    rows = [
        [
            f'<span class="wrap">{escape(hub.text)}{"" if hub.whole else "&nbsp;…"}</span>',
            f"{hub.negatives:,}",
            share(hub.negatives, counts.queries_kept),
        ]
        for hub in hubs.top
    ]
    sentence = (
        f"{hubs.documents_used:,} of {counts.documents:,} documents are a negative of some query. The most used "
        f"{hubs.top_documents:,} (1%) hold {share(hubs.top_negatives, counts.negatives)} of all negatives; drawn at random, "
        f"they would hold {share(hubs.expected_negatives, counts.negatives)}."
    )
    return f"<h3>Documents used most</h3><p>{sentence}</p>{table(['document', 'negatives', 'of the queries'], rows)}"


def _left_out(audit: Audit) -> str:
    lists = {
        "candidates, by what took them out": audit.dropped,
        "queries, by what dropped them": {name: count for name, count in audit.dropped_queries.items() if count},
        "short rows": {name: count for name, count in audit.short_rows.items() if count},
    }
    parts = [
        f"<div>{table([title, ''], [[escape(name), f'{count:,}'] for name, count in counts.items()])}</div>"
        for title, counts in lists.items()
        if counts
    ]
    return f'<h3>Left out</h3><div class="columns lists">{"".join(parts)}</div>' if parts else ""


def sources_table(audits: Mapping[str, Audit]) -> str:
    """Sources side by side, where there are several."""
    if len(audits) < 2:
        return ""
    columns = ["source", "queries", "negatives", "per query", "above the positive", "queries outranked", "short"]
    columns += ["top 1%", "warnings"]
    rows = []
    for name, audit in audits.items():
        counts, order, above = audit.counts, audit.order, audit.share_of("above_mean")
        rows.append(
            [
                f'<a href="#{_anchor(name)}">{escape(name)}</a>',
                f"{counts.queries_kept:,}",
                f"{counts.negatives:,}",
                _each(audit) or DASH,
                DASH if above is None else percent(above),
                share(order.every_positive_below, order.queries),
                share(sum(audit.lengths[:-1]), counts.queries_kept),
                share(audit.hubs.top_negatives, counts.negatives),
                f"{len(audit.warnings)}",
            ]
        )
    note = (
        "Above the positive: negatives that score above the mean positive of their query. Outranked: a negative scores above "
        "every positive. Short: fewer negatives than asked for. Top 1%: share of the negatives that the most used 1% of the "
        "documents hold."
    )
    return f'<section><h2>Sources</h2>{table(columns, rows)}<p class="soft small">{note}</p></section>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML. The first column names the row."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _anchor(name: str) -> str:
    return f"source-{quote(name, safe='')}"


def _each(audit: Audit) -> str | None:
    """Negatives per query."""
    counts = audit.counts
    return f"{counts.negatives / counts.queries_kept:.1f}" if counts.queries_kept else None


def _at_most(audit: Audit, queries: int, most: int, of: str) -> str:
    return f"{queries:,} of {audit.counts.queries_kept:,} queries, at most {most:,} {of}" if queries else "none"


def _median(quantiles: Sequence[float] | None) -> float | None:
    return None if quantiles is None else quantiles[1]


def _of(part: int, whole: int) -> str:
    return f"{part:,}" if part == whole else f"{part:,} of {whole:,}"
