"""What is out of the ordinary, from which figure on, and what to do.

Thresholds are where it pays to look, not where training breaks. A warning names its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from embedtrain.mining.audit.records import Audit, Warned
from embedtrain.mining.audit.words import share

# From this figure on; shares of 1.
THRESHOLDS: dict[str, float] = {
    "same_words": 0.001,  # negatives that answer a query of the same words: they are certain
    "own_class": 0.01,  # negatives of the query's own class, of those whose class is known
    "above_mean": 0.05,  # negatives that score above the mean positive of their query
    "near_duplicates": 0.01,  # negatives that share half of their word triples with a positive of their query
    "outranked": 0.20,  # queries with a negative above every positive
    "missing_positives": 0.10,  # documents that answer and that the corpus lacks
    "missed": 0.05,  # of the nearest documents, by an approximate search
    "empty_rows": 0.01,  # queries without any negative
    "short_rows": 0.05,  # queries with some negatives, but fewer than asked for
    "filled_at_random": 0.05,  # negatives that no search found
    "dropped_queries": 0.20,
    "hubs": 3.0,  # times as many negatives in the most used 1% of the documents as chance would give
    "one_document": 0.05,  # queries that have one and the same document as a negative
}
HUBS_FROM = 0.05  # share of all negatives in the most used 1%: below it, hubs are not worth a word
QUERIES_FROM = 20  # that have one document as a negative


def warnings_of(audit: Audit) -> list[Warned]:
    """In the order of importance."""
    return [
        Warned(
            name=name,
            value=value,
            threshold=THRESHOLDS[name],
            is_share=name != "hubs",
            text=text,
            remedy=remedy,
        )
        for rule in (_answers, _order, _corpus, _rows, _hubs)
        for name, value, text, remedy in rule(audit)
        if value is not None and value >= THRESHOLDS[name]
    ]


# Name, value (None: not known), what it means as the rest of a sentence, what to do.
Figures = Iterator[tuple[str, float | None, str, str]]


def _answers(audit: Audit) -> Figures:
    yield (
        "same_words",
        audit.share_of("same_words"),
        "of the negatives answer a query of the same words: it differs in case, punctuation or instruction alone.",
        "Write such queries alike in the data, so that they are one query with all its positives.",
    )
    yield (
        "own_class",
        audit.share_of("own_class"),
        "of the negatives whose class is known are of the query's own class: they answer as its positive does.",
        "Take them out (filter@miner.filters.own_class=own_class).",
    )
    stronger = "" if audit.rescored else ", or ask a stronger model (miner=rescored)"
    yield (
        "above_mean",
        audit.share_of("above_mean"),
        "of the negatives score above the mean positive of their query. Training pushes them away; many may be answers.",
        f"Take out what scores nearly as high as the positive (miner=percent_of_positive){stronger}. First read the suspicious "
        "examples: it may be the positives that are wrong.",
    )
    yield (
        "near_duplicates",
        audit.share_of("near_duplicates"),
        "of the negatives share half of their word triples and more with a positive of their query.",
        "Read such rows. Where the rest makes no difference, take them out (miner.near_duplicates=0.5).",
    )


def _order(audit: Audit) -> Figures:
    yield (
        "outranked",
        _of(audit.order.every_positive_below, audit.order.queries),
        "of the queries have a negative that scores above every positive.",
        "Read the suspicious examples. Where the positive is wrong, drop such queries "
        "(filter@miner.query_filters.consistent=consistency); where the negative answers too, filter the candidates "
        "(miner=percent_of_positive).",
    )


def _corpus(audit: Audit) -> Figures:
    yield (
        "missing_positives",
        _of(audit.counts.positives_missing, audit.counts.documents_that_answer),
        "of the documents that answer are not in the corpus. Negatives then differ from positives in more than their "
        "meaning, and copies of positives may be among them.",
        "Is it the corpus of these rows? Its texts must be those of the rows to the letter, title and text put together.",
    )
    known = [recall for recall in recalls(audit.facts.get("search") or {}) if recall is not None]
    yield (
        "missed",
        1 - min(known) if known else None,
        "of the nearest documents were not found by the approximate search, and could not become negatives.",
        "Let it look at more (the settings of miner.search), or search exactly (search@miner.search=exact).",
    )


def _rows(audit: Audit) -> Figures:
    counts = audit.counts
    most = max(audit.dropped, key=lambda name: audit.dropped[name], default=None)
    because = f" Most candidates went to {most!r} ({audit.dropped[most]:,})." if most and audit.dropped[most] else ""
    remedy = f"Look at more candidates (miner.depth), or filter less.{because}"
    yield (
        "empty_rows",
        _of(audit.lengths[0], counts.queries_kept),
        "of the queries have no negative at all; in-batch negatives are all they get.",
        remedy,
    )
    yield (
        "short_rows",
        _of(sum(audit.lengths[1:-1]), counts.queries_kept),
        f"of the queries have some negatives, but fewer than {counts.num_negatives}. Formats with a column for each "
        "negative leave their rows out.",
        remedy,
    )
    yield (
        "filled_at_random",
        _of(audit.reasons.get("random", 0), counts.negatives),
        "of the negatives were drawn from the whole corpus to fill short rows. They are easy, and teach little.",
        "Look at more candidates (miner.depth), filter less, or keep rows short (miner.short_rows=keep).",
    )
    by = ", ".join(f"{name}: {count:,}" for name, count in audit.dropped_queries.items() if count)
    yield (
        "dropped_queries",
        _of(counts.queries - counts.queries_kept, counts.queries),
        f"of the queries were dropped, and their rows with them{f' ({by})' if by else ''}.",
        "Loosen what drops most, and look at what it drops.",
    )


def _hubs(audit: Audit) -> Figures:
    hubs, counts = audit.hubs, audit.counts
    many = counts.negatives and hubs.top_negatives / counts.negatives >= HUBS_FROM
    yield (
        "hubs",
        hubs.top_negatives / hubs.expected_negatives if many else None,
        "as many negatives as chance would give belong to the most used 1% of the documents: "
        f"{share(hubs.top_negatives, counts.negatives)} of all.",
        "Read the documents used most. Boilerplate does not belong into the corpus; otherwise draw from more candidates "
        "(miner.draw=uniform, a larger miner.depth).",
    )
    often = hubs.top[0].negatives if hubs.top else 0
    yield (
        "one_document",
        _of(often, counts.queries_kept) if often >= QUERIES_FROM else None,
        "of the queries have one and the same document as a negative.",
        "Read it, under the documents used most. If it answers everything or is boilerplate, take it out of the corpus.",
    )


def recalls(facts: Mapping[str, Any]) -> list[float | None]:
    """Every `recall` that a search says of itself, also those of several that are fused; None: it was not measured."""
    own = [facts["recall"]] if "recall" in facts else []
    inner = [recall for value in facts.values() if isinstance(value, Mapping) for recall in recalls(value)]
    return own + inner


def _of(part: float, whole: float) -> float | None:
    return part / whole if whole else None
