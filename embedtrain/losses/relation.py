"""Reads a `Relation` sparsely: every pair is a negative, and here are the exceptions of a few rows.

A contrastive term compares rows with columns. For a block of rows it must know which columns are *not* negatives. Both
texts and answers are numbered once; after that each question is a walk over small lists ("the answers of this text, the
documents that are this answer"), so its cost is that of the exceptions found and never Q x D.

    term   rows                 columns     not negatives of the row
    q2d    queries              documents   answers of the row's text
    q2q    queries              queries     itself, the same text, every query that shares an answer
    d2q    positive documents   queries     every query that the row answers
    d2d    positive documents   documents   whatever its own query brought, itself again, and other answers of a query
                                            that it answers

The *answers* of a query text are the ids known or brought as positive by any row with that text. Lists live on the CPU,
whatever the device of the embeddings: their lengths are shapes, and reading those from a GPU would make it wait.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from embedtrain.types import Relation


class Lists:
    """One list of values for each key 0 .. size - 1 (compressed rows)."""

    def __init__(self, keys: Tensor, values: Tensor, size: int):
        self.values = values[torch.argsort(keys, stable=True)]
        self.offsets = torch.zeros(size + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(keys, minlength=size), 0, out=self.offsets[1:])

    def __call__(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The lists of `keys` [N], one after the other: position in `keys` [M], value [M]."""
        counts = self.offsets[keys + 1] - self.offsets[keys]
        position = torch.repeat_interleave(torch.arange(keys.numel()), counts)
        before = torch.cumsum(counts, 0) - counts
        return position, self.values[torch.arange(position.numel()) + (self.offsets[keys] - before)[position]]


def follow(start: Tensor, *steps: Lists) -> tuple[Tensor, Tensor]:
    """Walks from each of `start` [N] along `steps`: position in `start` [M], where it arrived [M], each pair once, sorted."""
    position, values = torch.arange(start.numel()), start
    for step in steps:
        index, values = step(values)
        position, values = distinct(position[index], values)
    return position, values


def distinct(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Each (row, column) pair once, row by row."""
    if rows.numel() == 0:
        return rows, columns
    width = int(columns.max()) + 1
    flat = torch.unique(rows * width + columns)
    return flat // width, flat % width


class RelationReader:
    """Answers, for rows of any of the four terms, which columns are exceptions. Pairs are (position in the rows, column)."""

    def __init__(self, relation: Relation):
        self.num_queries, self.num_documents = relation.num_queries, relation.num_documents
        self.owner = relation.owner.cpu()
        ids, self.text = torch.unique(relation.query_ids.cpu(), return_inverse=True)  # [Q] number of the query's text
        self._num_texts = ids.numel()
        ids, numbers = torch.unique(torch.cat([relation.document_ids, relation.known_ids]).cpu(), return_inverse=True)
        self._num_contents = ids.numel()
        self.content = numbers[: self.num_documents]  # [D] number of the document's content

        # Who answers what: known, or brought as a positive.
        positive = torch.nonzero(relation.is_positive.cpu()).flatten()
        known_by = torch.repeat_interleave(torch.arange(self.num_queries), relation.known_offsets.cpu().diff())
        text = torch.cat([self.text[known_by], self.text[self.owner[positive]]])
        content = torch.cat([numbers[self.num_documents :], self.content[positive]])
        self._text, self._answer = distinct(text, content)

        # Positive pairs, query by query; hard negatives are what a query brought and that is no answer of it.
        self.pair_document = positive[torch.argsort(self.owner[positive], stable=True)]  # [P]
        self.pair_query = self.owner[self.pair_document]  # [P], ascending
        answers = self._text * self._num_contents + self._answer
        is_answer = torch.isin(self.text[self.owner] * self._num_contents + self.content, answers)
        hard = torch.nonzero(~is_answer & (self.owner >= 0)).flatten()
        self._hard = Lists(self.owner[hard], hard, self.num_queries)

    # Lists are made when a term first needs them.
    @cached_property
    def _answers(self) -> Lists:
        return Lists(self._text, self._answer, self._num_texts)

    @cached_property
    def _askers(self) -> Lists:
        return Lists(self._answer, self._text, self._num_contents)

    @cached_property
    def _queries(self) -> Lists:
        return Lists(self.text, torch.arange(self.num_queries), self._num_texts)

    @cached_property
    def _documents(self) -> Lists:
        return Lists(self.content, torch.arange(self.num_documents), self._num_contents)

    @cached_property
    def _brought(self) -> Lists:
        brought = torch.nonzero(self.owner >= 0).flatten()
        return Lists(self.owner[brought], brought, self.num_queries)

    def exceptions(self, term: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs of `rows` [R] (queries for q2*, positive documents for d2*) that are no negatives of `term`."""
        if term == "q2d":
            return follow(self.text[rows], self._answers, self._documents)
        if term == "d2q":
            return follow(self.content[rows], self._askers, self._queries)
        if term == "q2q":
            same = follow(self.text[rows], self._queries)
            shared = follow(self.text[rows], self._answers, self._askers, self._queries)
        else:
            same = follow(self.owner[rows], self._brought)
            shared = follow(self.content[rows], self._askers, self._answers, self._documents)
        return distinct(torch.cat([same[0], shared[0]]), torch.cat([same[1], shared[1]]))

    def hard_negatives(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The hard negatives of `queries` [R]: position in `queries`, document."""
        return self._hard(queries)

    def num_ignored(self, start: int, stop: int) -> int:
        """The (query, document) pairs of queries start .. stop - 1 that are answers without being positive pairs."""
        copies = torch.bincount(self.content, minlength=self._num_contents)[self._answer]
        answers = torch.zeros(self._num_texts, dtype=torch.int64).index_add_(0, self._text, copies)
        own = (self.pair_query >= start) & (self.pair_query < stop)
        return int(answers[self.text[start:stop]].sum() - own.sum())
