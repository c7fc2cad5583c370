"""From the rows of a source to the texts of a mining: each query and each document once, and who answers whom."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.data.index import check
from embedtrain.data.sources.base import Source
from embedtrain.errors import DataError
from embedtrain.mining.corpus import Corpus
from embedtrain.mining.records import MiningData
from embedtrain.types import NO_LABEL, TrainingExample, text_id

T = TypeVar("T", bound=Hashable)


def mining_data(source: Source, name: str, *, corpus: Corpus | None = None) -> MiningData:
    """The texts of all rows of `source`, read once. `name`: of the source in the mixture.

    A document is a text: equal texts are one, whatever their ids. The corpus is `corpus`; without one it is every positive
    and every negative of the rows. A query's positives are those of all rows that ask it (NeMo Automodel #3021: a sibling's
    positive is no negative). Numbers follow first appearance, so the same rows give the same numbers on every rank.

    Memory: each distinct text once, and about 150 bytes for each text of a row.

    Raises DataError at the first row that cannot be trained on, or whose documents are chunks of one document.
    """
    source.refuse_empty()
    queries = _Distinct[tuple[str, str | None]]()
    documents = _Distinct[str]() if corpus is None else _Distinct(corpus.documents)
    num_searched = len(documents.values)
    rows = array("q")  # query of each row
    pairs = array("q"), array("q"), array("q")  # query, positive, label: of each positive of each row
    labels = array("q")  # of each row
    read = 0
    for example in source:
        check(example)
        _refuse_chunks(example, name)
        query = queries.number((example.query, example.instruction))
        label = NO_LABEL if example.label is None else text_id(example.label)
        rows.append(query)
        labels.append(label)
        for text in example.positives:
            for column, value in zip(pairs, (query, documents.number(text), label), strict=True):
                column.append(value)
        if corpus is None:
            for text in example.negatives:
                documents.number(text)
        read += len(example.positives) + len(example.negatives)
    owner, positive, label_of_pair = (np.array(column, dtype=np.int64) for column in pairs)
    query_of_row = np.array(rows, dtype=np.int64)
    positives, offsets = _grouped(owner, positive, len(queries.values))
    return MiningData(
        source=name,
        queries=[text for text, _ in queries.values],
        instructions=[instruction for _, instruction in queries.values],
        documents=documents.values,
        num_searched=len(documents.values) if corpus is None else num_searched,
        positives=positives,
        positive_offsets=offsets,
        query_of_row=query_of_row,
        query_labels=_only_label(query_of_row, np.array(labels, dtype=np.int64), len(queries.values)),
        document_labels=_only_label(positive, label_of_pair, len(documents.values)),
        documents_read=read if corpus is None else corpus.read,
    )


class _Distinct(Generic[T]):
    """Values by number, in the order of their first appearance."""

    def __init__(self, values: Sequence[T] = ()) -> None:
        self.values = list(values)
        self._numbers = {value: number for number, value in enumerate(self.values)}

    def number(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


def _grouped(owner: Ints, member: Ints, count: int) -> tuple[Ints, Ints]:
    """Members of each of `count` owners, each once, in the order of their first appearance; and offsets [count + 1]."""
    width = int(member.max(initial=0)) + 1
    _, first = np.unique(owner * width + member, return_index=True)
    first.sort()
    owner, member = owner[first], member[first]
    order = np.argsort(owner, kind="stable")
    offsets = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=count), out=offsets[1:])
    return member[order], offsets


def _only_label(owner: Ints, label: Ints, count: int) -> Ints:
    """[count] the label of each owner where it has one alone; NO_LABEL where it has none, or several."""
    known = label != NO_LABEL
    owner, label = owner[known], label[known]
    lowest = np.full(count, np.iinfo(np.int64).max)
    highest = np.full(count, NO_LABEL, dtype=np.int64)
    np.minimum.at(lowest, owner, label)
    np.maximum.at(highest, owner, label)
    return np.where(lowest == highest, highest, NO_LABEL)


def _refuse_chunks(example: TrainingExample, name: str) -> None:
    if example.order is not None:
        raise DataError(
            f"{example.row}: the documents of source {name!r} are chunks that are embedded as parts of a whole document, so no "
            "chunk can stand alone as another query's negative. Leave this source out of mining; its rows bring the other "
            "chunks of their document as negatives."
        )
