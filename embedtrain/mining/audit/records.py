"""The figures of an audit. Whole numbers count what the name says; a share is of what the comment says, None of nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one source."""

    rows: int
    rows_kept: int  # their query was kept
    queries: int
    queries_kept: int
    documents: int  # distinct texts that are searched
    documents_read: int  # before equal texts became one
    positives: int  # pairs of a kept query and a document
    documents_that_answer: int  # distinct, of all queries
    positives_missing: int  # of them, those that the corpus lacks
    negatives: int  # pairs of a kept query and a document
    num_negatives: int  # K, asked for
    queries_of_several_rows: int
    most_rows_of_a_query: int
    queries_of_several_positives: int
    most_positives_of_a_query: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Two histograms over the same bins: bin i holds `edges[i] <= score < edges[i + 1]`."""

    edges: list[float]
    positives: list[int]
    negatives: list[int]
    positive_quantiles: list[float] | None  # at 5, 50 and 95%
    negative_quantiles: list[float] | None
    positives_without: int  # that have no score
    negatives_without: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """Positives against negatives of the same query, for queries that have a score of both.

    The margin of a query is its highest positive - its highest negative.
    """

    queries: int
    some_positive_below: int  # queries: a negative scores above the lowest positive
    every_positive_below: int  # queries: a negative scores above the highest positive; their margins are below 0
    edges: list[float]  # of a histogram of margins, as those of `Scores`; 0 is one of them where it lies between two
    margins: list[int]
    margin_quantiles: list[float] | None  # at 5, 50 and 95%


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How many negatives may be answers, by one basis. Estimates overlap and are not added up."""

    name: str  # above_lowest | above_mean | same_words | near_duplicates | own_class
    what: str  # such a negative does
    basis: str  # who says so, and what that is worth
    negatives: int
    of: int  # negatives that the basis can judge
    queries: int  # that have such a negative

    @property
    def share(self) -> float | None:
        return self.negatives / self.of if self.of else None


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A document that is a negative of many queries."""

    text: str  # its beginning
    whole: bool  # that is all of it
    negatives: int


@dataclass(frozen=True, kw_only=True)
class Hubs:
    """How unevenly negatives are spread over the searched documents."""

    documents_used: int  # are a negative of some query
    top: list[Hub]  # most often first
    top_documents: int  # 1% of the searched documents, at least one
    top_negatives: int  # that the most used of them hold
    expected_negatives: float  # that they would hold if negatives were drawn at random


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Places of the negatives in the list of the search, known answers not counted."""

    first: list[int]  # of each bin
    last: list[int]
    negatives: list[int]
    median: int | None
    without: int  # negatives that no search found


@dataclass(frozen=True, kw_only=True)
class ShownText:
    text: str  # its beginning
    characters: int  # of the whole
    score: float | None


@dataclass(frozen=True, kw_only=True)
class ShownNegative(ShownText):
    rank: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query with its positives and negatives, best first, to read."""

    drawn: str  # suspicious | random
    query: ShownText
    instruction: str | None
    above: float | None  # highest negative - highest positive: above 0, a negative looks more like an answer
    positives: list[ShownText]
    num_positives: int
    negatives: list[ShownNegative]
    num_negatives: int


@dataclass(frozen=True, kw_only=True)
class Warned:
    """A figure that is out of the ordinary: `value` is `threshold` or more."""

    name: str
    value: float
    threshold: float
    is_share: bool  # of 1; else so many times
    text: str  # what it means
    remedy: str  # what to do


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All figures of one source."""

    source: str
    scored_by: str
    rescored: bool  # the scores are those of a stronger model
    counts: Counts
    scores: Scores | None  # None where nothing has a score
    order: Order
    estimates: list[Estimate]
    lengths: list[int]  # [K + 1] kept queries with 0, 1, ..., K negatives
    hubs: Hubs
    ranks: Ranks
    reasons: dict[str, int]  # negatives by why they were taken
    dropped: dict[str, int]  # candidates by what took them out, in its order
    dropped_queries: dict[str, int]
    short_rows: dict[str, int]  # before the policy for them, and what it did
    examples: list[Example]
    warnings: list[Warned]
    facts: dict[str, Any]  # how they were mined: search, model, store, times

    def share_of(self, estimate: str) -> float | None:
        """Negatives that an estimate suspects, of those that it can judge; None where it was not made."""
        return next((known.share for known in self.estimates if known.name == estimate), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values; shares of the estimates beside their counts."""
        tree = asdict(self)
        for estimate, record in zip(tree["estimates"], self.estimates, strict=True):
            estimate["share"] = record.share
        return tree
