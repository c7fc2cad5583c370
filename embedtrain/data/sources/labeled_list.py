"""A query, a list of documents and what each of them is worth: rows of rerankers and of graded judgements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Unpack

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.opening import open_rows
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample


class LabeledList(Source):
    """Rows `{"query": str, "documents": [str], "labels": [number]}` of a JSONL or Parquet file, of a folder of Parquet files
    or of `save_to_disk`, or of a data set on the Hugging Face hub: the labeled-list of sentence-transformers.

        form      positives                               negatives
        labels    documents with label 1, not 0           the others
        scores    the document with the highest score     the others; for rows that a ranker scored

    The numbers are the `scores` of the row: losses over graded lists read them, contrastive losses do not. Documents keep
    their order, positives first.

    path            what to read
    query, documents, labels   their columns
    form            see above
    positive_from   form labels: documents with this label or more are positives (null: labels are 0 or 1, others are refused)
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        query: str = "query",
        documents: str = "documents",
        labels: str = "labels",
        form: Literal["labels", "scores"] = "labels",
        positive_from: float | None = None,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        if form not in ("labels", "scores"):
            raise ConfigError(f"form={form!r}: expected labels or scores.")
        if form == "scores" and positive_from is not None:
            raise ConfigError(
                f"positive_from={positive_from:g}: with form=scores the best document is the positive. Set it to null, or "
                "use form=labels."
            )
        self.rows = open_rows(path, {"query": query, "positives": documents, "scores": labels})
        self.names = (query, documents, labels)
        self.form = form
        self.positive_from = positive_from

    @staticmethod
    def knows(columns: Sequence[str]) -> bool:
        """Whether these are the columns of such rows, as the defaults name them."""
        return {"query", "documents", "labels"} <= set(columns)

    @property
    def where(self) -> str:
        return self.rows.where

    def _mapping(self) -> str:
        query, documents, labels = self.names
        return f"query <- {query}; positives and negatives <- {documents} by {labels}, form {self.form}"

    def _count(self) -> int:
        return len(self.rows)

    def _read(self, row: int) -> TrainingExample:
        return self._split(self.rows[row])

    def _read_all(self) -> Iterator[TrainingExample]:
        return map(self._split, self.rows)

    def _split(self, read: TrainingExample) -> TrainingExample:
        """Positives and negatives of a row whose documents are all in `positives`."""
        documents, scores = read.positives, read.scores or ()
        if len(scores) != len(documents):
            raise DataError(f"{read.row}: {len(documents)} documents and {len(scores)} labels. Expected one for each.")
        is_positive = self._positive(scores, read.row)
        order = sorted(range(len(documents)), key=lambda number: not is_positive[number])  # stable
        count = sum(is_positive)
        return replace(
            read,
            positives=tuple(documents[number] for number in order[:count]),
            negatives=tuple(documents[number] for number in order[count:]),
            scores=tuple(scores[number] for number in order),
        )

    def _positive(self, scores: Sequence[float], row: str) -> list[bool]:
        if self.form == "scores":
            best = max(range(len(scores)), key=scores.__getitem__, default=0)  # the first of equals
            return [number == best for number in range(len(scores))]
        if self.positive_from is not None:
            return [score >= self.positive_from for score in scores]
        strange = [score for score in scores if score not in (0, 1)]
        if strange:
            raise DataError(
                f"{row}: the label {strange[0]:g} is neither 0 nor 1. For grades say from which on a document is a positive "
                "(positive_from=1); for a ranker's scores use form=scores."
            )
        return [score == 1 for score in scores]
