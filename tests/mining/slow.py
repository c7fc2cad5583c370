"""A miner that is a loop over all pairs, to hold the real one against."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedtrain.types import TrainingExample

Score = Callable[[str, str], float]


@dataclass
class Rules:
    """What is asked of it, in the words of the miner."""

    num_negatives: int = 4
    depth: int = 20
    near_duplicates: float | None = 0.8
    rescore: Score | None = None
    first: int = 1  # ranks
    last: int = 10**9
    share: float | None = None  # of the lowest positive
    margin: float | None = None  # below the lowest positive
    highest: float | None = None
    consistent: int | None = None  # the best positive is among so many


@dataclass
class SlowlyMined:
    """By query: what may be a negative, best first, as (document, score, rank); None where a filter dropped the query."""

    allowed: dict[str, list[tuple[str, float, int]] | None] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def top(self, count: int) -> dict[str, list[tuple[str, float, int]] | None]:
        return {query: None if found is None else found[:count] for query, found in self.allowed.items()}


def slowly_mined(
    rows: Sequence[TrainingExample], score: Score, rules: Rules, corpus: Sequence[str] | None = None
) -> SlowlyMined:
    """Rows without instructions. `score`: the search's, of a query and a document."""
    queries = list(dict.fromkeys(row.query for row in rows))
    positives = {query: [p for row in rows if row.query == query for p in row.positives] for query in queries}
    searched = list(dict.fromkeys(corpus or [t for row in rows for t in (*row.positives, *row.negatives)]))
    most = max(len(set(own)) for own in positives.values())
    mined = SlowlyMined()
    for query in queries:
        by_score = sorted(searched, key=lambda document: -score(query, document))  # stable: equal ones by number
        candidates = []
        for document in by_score[: rules.depth + 2 * most + 1]:
            reason = why_not(query, document, positives[query], rules.near_duplicates)
            if reason is None:
                candidates.append(document)
            else:
                mined.dropped[reason] += 1
        mined.allowed[query] = _chosen(query, candidates[: rules.depth], positives[query], score, rules, mined.dropped)
    return mined


def _chosen(
    query: str, candidates: list[str], positives: list[str], score: Score, rules: Rules, dropped: Counter[str]
) -> list[tuple[str, float, int]] | None:
    of = rules.rescore or score
    lowest, highest = (which(of(query, p) for p in positives) for which in (min, max))
    left = []
    above = 0  # candidates above the best positive, of those that have a score
    for rank, document in enumerate(candidates, start=1):
        inside = rules.first <= rank <= rules.last
        value = of(query, document)
        above += value > highest and (inside or rules.rescore is None)
        if not inside:
            dropped["ranks"] += 1
        elif rules.share is not None and not value < lowest - (1 - rules.share) * abs(lowest):
            dropped["share"] += 1
        elif rules.margin is not None and not value < lowest - rules.margin:
            dropped["margin"] += 1
        elif rules.highest is not None and not value <= rules.highest:
            dropped["highest"] += 1
        else:
            left.append((document, value, rank))
    if rules.consistent is not None and not above < rules.consistent:
        return None
    return sorted(left, key=lambda found: (-found[1], found[2]))


def why_not(query: str, document: str, positives: Sequence[str], threshold: float | None) -> str | None:
    """Why a document is no candidate, by sets of word triples. ASCII alone."""
    if document in positives:
        return "positive"
    if _words(document) == _words(query):
        return "the query itself"
    if any(_words(document) == _words(p) for p in positives):
        return "copy of a positive"
    if threshold is not None and any(_jaccard(document, p) >= threshold for p in positives):
        return "near-duplicate of a positive"
    return None


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _jaccard(left: str, right: str) -> float:
    a, b = (set(zip(w, w[1:], w[2:], strict=False)) for w in (_words(left), _words(right)))
    return len(a & b) / max(1, len(a | b))


def product(vectors: dict[Any, np.ndarray]) -> Score:
    """Inner products of the vectors of ("query", text) and ("document", text), in fp64, rounded once."""

    def score(query: str, document: str) -> float:
        left, right = vectors["query", query], vectors["document", document]
        return float(np.float32(left.astype(np.float64) @ right.astype(np.float64)))

    return score
