"""The records and protocols of mining. Read this first.

    sources (+ corpus file)      --MiningData.of-->  distinct queries, distinct documents, who answers whom
    MiningData                   --Encoder-->        embedding store on disk
    queries, documents           --Search-->         Found: the nearest documents of each query
    Found                        --exclusion-->      Candidates: no positive of the query, no copy of one; ranked from 1
    Candidates                   --Rescorer-->       the same, with the scores of a stronger model
    Candidates                   --Filters-->        which may be negatives, and why the others may not
    Candidates                   --draw-->           Mined: K negatives per query, with score, rank and reason
    Mined                        --audit-->          what a person should know before training on them

Shape letters, besides those of `embedtrain.types`: M candidates of a query, P positives of all queries together. An index of a
document is always its place in `MiningData.documents`; NO_DOCUMENT stands where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from embedtrain.data.draws import Ints

NO_DOCUMENT = -1


@dataclass(frozen=True, slots=True)
class MiningData:
    """The texts of one source, each once, and what is known of them.

    A query is a text with its instruction: rows that ask the same are one query here, and `positives` are those of all of
    them. The first `num_searched` documents are the corpus, from which negatives may come; behind them stand
    positives that the corpus lacks, which are scored and never found.
    """

    source: str
    queries: Sequence[str]  # [Q]
    instructions: Sequence[str | None]  # [Q]
    documents: Sequence[str]  # [D]
    num_searched: int
    positives: Ints  # [P] documents, query by query
    positive_offsets: Ints  # [Q + 1] query q has positives[offsets[q]:offsets[q + 1]]
    query_of_row: Ints  # [R] of each row of the source, in its order
    query_labels: Ints  # [Q] class of the query (text id), NO_LABEL where it has none
    document_labels: Ints  # [D] class of the rows that the document answers, NO_LABEL where unknown or several
    documents_read: int  # before equal texts became one

    def positives_of(self, query: int) -> Ints:
        return self.positives[self.positive_offsets[query] : self.positive_offsets[query + 1]]

    @property
    def num_missing(self) -> int:
        """Positives that the corpus lacks."""
        return len(self.documents) - self.num_searched


class Vectors(Protocol):
    """Embeddings of N texts by number, read from wherever they lie. Not all of them need fit into memory."""

    dim: int

    def __len__(self) -> int: ...

    def rows(self, index: Ints | slice) -> np.ndarray:
        """[n, E] fp32, a copy."""
        ...


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What a search may read."""

    data: MiningData
    queries: Vectors | None  # [Q, E]; None where the search reads no vectors (`Search.reads_vectors`)
    documents: Vectors | None  # [D, E]
    device: torch.device
    max_memory: int  # bytes that the search may hold at a time, besides the store and its own index
    folder: Path  # an empty folder of this call, on a disk that all ranks share, for an index that is written


@dataclass(frozen=True, slots=True)
class Found:
    """The best documents of some queries, best first; equal scores by index. CPU."""

    documents: Tensor  # [Q, k] int64, NO_DOCUMENT where there are fewer
    scores: Tensor  # [Q, k] fp32, NaN there


class Search(Protocol):
    """Finds the nearest documents of each query.

    Every rank calls `top`; each gets the answer for its own queries, `own_queries(len(queries))`, a contiguous part.
    """

    reads_vectors: bool

    def top(self, request: SearchRequest, k: int) -> Found:
        """The `k` best of the searched documents (`data.num_searched`) of each of this rank's queries."""
        ...

    def score_pairs(self, queries: Ints, documents: Ints) -> Tensor:
        """[n] fp32, CPU: the scores of n pairs, after `top`; of documents that were not found, and of positives that the corpus
        lacks, as well."""
        ...

    def facts(self) -> dict[str, object]:
        """What the report says of the last `top`: kind, settings, recall against exact search where it is approximate."""
        ...


class Rescorer(Protocol):
    """A stronger model's opinion of (query, document) pairs."""

    name: str  # for rows and report

    def score(self, data: MiningData, queries: Ints, documents: Ints) -> Tensor:
        """[n] fp32, CPU, of n pairs. Every rank calls it once per mining with its own pairs, also with none."""
        ...

    def facts(self) -> dict[str, object]:
        """What the report says of the last `score`, of all ranks."""
        ...


@dataclass(slots=True)
class Candidates:
    """M candidates of Q queries (some of the rank's), best first, and the scores of their positives. CPU.

    `ranks` counts from 1, after positives and their copies were taken out: rank 1 is the most similar document that is not
    known to answer. It does not change when a rescorer gives other scores.
    """

    data: MiningData
    queries: Ints  # [Q] their numbers in `data`
    documents: Tensor  # [Q, M] int64, NO_DOCUMENT where there is none
    scores: Tensor  # [Q, M] fp32, NaN there
    ranks: Tensor  # [Q, M] int64, 0 there
    positive_scores: Tensor  # [sum of their positives] fp32, in the order of `data.positives_of`
    positive_offsets: Tensor  # [Q + 1] int64
    kept: Tensor  # [Q, M] bool: still in question; what stands at NO_DOCUMENT never is

    @property
    def lowest_positive(self) -> Tensor:
        """[Q] the smallest score of a positive of the query."""
        return self._of_positives("amin")

    @property
    def highest_positive(self) -> Tensor:
        """[Q]"""
        return self._of_positives("amax")

    @property
    def mean_positive(self) -> Tensor:
        """[Q]"""
        return self._of_positives("mean")

    def _of_positives(self, how: str) -> Tensor:
        counts = self.positive_offsets.diff()
        owner = torch.repeat_interleave(torch.arange(counts.numel()), counts)
        empty = self.positive_scores.new_zeros(counts.numel())
        return empty.scatter_reduce(0, owner, self.positive_scores, how, include_self=False)


class Filter(Protocol):
    """Says which candidates may be negatives."""

    def __call__(self, candidates: Candidates) -> Tensor:
        """[Q, M] bool, True: may stay. Looks at all candidates; those that are out already (`kept`) stay out whatever it says.

        Called for some queries at a time, on every rank for its own.
        """
        ...


class QueryFilter(Protocol):
    """Says which queries are worth training on. The rows of the others are dropped."""

    of_queries: Literal[True]

    def __call__(self, candidates: Candidates) -> Tensor:
        """[Q] bool, True: stays."""
        ...


@dataclass(slots=True)
class Mined:
    """The negatives of Q queries: of one rank's, or of all (`cat`). CPU.

    A row of fewer than K negatives ends in NO_DOCUMENT.
    """

    documents: Ints  # [Q, K]
    scores: np.ndarray  # [Q, K] fp32, NaN at NO_DOCUMENT and where a filler has none
    ranks: Ints  # [Q, K] 1, 2, ...; 0 at NO_DOCUMENT and for fillers
    reasons: np.ndarray  # [Q, K] uint8 into `REASONS`
    positive_scores: np.ndarray  # [P] fp32
    kept_queries: np.ndarray  # [Q] bool: False where a query filter dropped the query
    dropped: dict[str, int] = field(default_factory=dict)  # candidates taken out, by exclusion or filter name
    dropped_queries: dict[str, int] = field(default_factory=dict)  # by query filter
    short_rows: dict[str, int] = field(default_factory=dict)  # how many there were, and what became of them

    @staticmethod
    def cat(parts: Sequence[Mined]) -> Mined:
        """The queries of all parts, one after the other."""

        def summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
            names = dict.fromkeys(name for one in counts for name in one)
            return {name: sum(one.get(name, 0) for one in counts) for name in names}

        return Mined(
            documents=np.concatenate([part.documents for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            ranks=np.concatenate([part.ranks for part in parts]),
            reasons=np.concatenate([part.reasons for part in parts]),
            positive_scores=np.concatenate([part.positive_scores for part in parts]),
            kept_queries=np.concatenate([part.kept_queries for part in parts]),
            dropped=summed([part.dropped for part in parts]),
            dropped_queries=summed([part.dropped_queries for part in parts]),
            short_rows=summed([part.short_rows for part in parts]),
        )


# Why a document is a negative of its query. A row keeps the word.
REASONS = ("none", "top", "uniform", "softmax", "random")
