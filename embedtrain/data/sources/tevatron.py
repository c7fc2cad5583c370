"""Rows that name their documents by id, and the corpus that has them: the data of Tevatron and PyLate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.lines import LinesFile
from embedtrain.errors import DataError
from embedtrain.types import TrainingExample, text_id

_FORMS = ("positive_document_ids", "positive_passages", "document_ids")


class Tevatron(Source):
    """Rows of a JSONL file in one of three forms, known by its keys:

        {"query_id", "query_text", "positive_document_ids": [id], "negative_document_ids": [id]}              with a corpus
        {"query_id", "query", "positive_passages": [{"docid", "title", "text"}], "negative_passages": [...]}  without
        {"query_id", "document_ids": [id], "scores": [number]}                     with a corpus and queries, as in PyLate

    Of the last, the document with the highest score is the positive, and the scores are kept. The corpus has lines
    {"docid", "text"}, and "title" where there are titles; PyLate calls the id document_id, and in a file of queries
    query_id. A document is its title, a space and its text. Each file may be a `.gz`; ids may be numbers. Eight bytes for each
    document are held in memory, twice; texts are read where they lie.

    path      the file of rows, or a folder with train.jsonl
    corpus    the file of documents (null = corpus.jsonl beside the rows)
    queries   the file of queries, for rows that name theirs by id (null = queries.jsonl beside the rows)
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        corpus: str | None = None,
        queries: str | None = None,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        found = Path(path).expanduser()
        self.lines = LinesFile(_existing(found / "train.jsonl") if found.is_dir() else found)
        beside = self.lines.path.parent
        self._corpus_path = _existing(beside / "corpus.jsonl") if corpus is None else Path(corpus).expanduser()
        self._queries_path = _existing(beside / "queries.jsonl") if queries is None else Path(queries).expanduser()

    @staticmethod
    def knows(keys: Sequence[str]) -> bool:
        """Whether a row with these keys is of one of the forms."""
        return any(form in keys for form in _FORMS)

    @property
    def where(self) -> str:
        return str(self.lines.path)

    def _count(self) -> int:
        return len(self.lines)

    @cached_property
    def corpus(self) -> TextsById:
        return TextsById(LinesFile(self._corpus_path), ("docid", "document_id", "_id"), ("text",))

    @cached_property
    def queries(self) -> TextsById:
        return TextsById(LinesFile(self._queries_path), ("query_id", "_id"), ("text", "query_text", "query"))

    def _read(self, row: int) -> TrainingExample:
        values = self.lines.json(row)
        form = next((form for form in _FORMS if form in values), None)
        if form is None:
            raise DataError(f"{self._at(row)}: none of the keys {', '.join(_FORMS)} is there, but {', '.join(values)}.")
        query = self._query(values, row)
        if form == "document_ids":
            return self._ranked(query, values, row)
        if form == "positive_passages":
            texts = [self._passages(values, key, row) for key in ("positive_passages", "negative_passages")]
        else:
            texts = [self._documents(values, key, row) for key in ("positive_document_ids", "negative_document_ids")]
        positives, negatives = texts
        return TrainingExample(query=query, positives=positives, negatives=negatives, row=self.lines.where(row))

    def _ranked(self, query: str, values: Mapping[str, Any], row: int) -> TrainingExample:
        documents = self._documents(values, "document_ids", row)
        scores = [float(score) for score in _list(values, "scores", (int, float), self._at(row))]
        if len(scores) != len(documents):
            raise DataError(
                f"{self._at(row)}: {len(documents)} document_ids and {len(scores)} scores. Expected one for each."
            )
        best = max(range(len(scores)), key=scores.__getitem__, default=0)  # the first of equals
        order = sorted(range(len(scores)), key=lambda number: number != best)
        return TrainingExample(
            query=query,
            positives=tuple(documents[number] for number in order[:1]),
            negatives=tuple(documents[number] for number in order[1:]),
            scores=tuple(scores[number] for number in order),
            row=self.lines.where(row),
        )

    def _query(self, values: Mapping[str, Any], row: int) -> str:
        for key in ("query_text", "query"):
            if key in values:
                return _string(values, key, self._at(row))
        if "query_id" not in values:
            raise DataError(f"{self._at(row)}: there is neither query_text nor query nor query_id.")
        return self.queries.text(values["query_id"], self._at(row))

    def _documents(self, values: Mapping[str, Any], key: str, row: int) -> tuple[str, ...]:
        ids = _list(values, key, (str, int), self._at(row))
        return tuple(self.corpus.text(one, f"{self._at(row)}, {key}") for one in ids)

    def _passages(self, values: Mapping[str, Any], key: str, row: int) -> tuple[str, ...]:
        where = f"{self._at(row)}, {key}"
        return tuple(_titled(one, ("text",), where) for one in _list(values, key, (dict,), self._at(row)))

    def _at(self, row: int) -> str:
        return f"{self.lines.path}, line {self.lines.number(row)}"


class TextsById:
    """Texts of a JSONL file by their ids. What is held is where each id stands, by a hash of it; reading compares the ids."""

    def __init__(self, lines: LinesFile, id_keys: Sequence[str], text_keys: Sequence[str]) -> None:
        self.lines = lines
        self.id_keys = id_keys
        self.text_keys = text_keys

    def text(self, wanted: str | int, asked: str) -> str:
        """The text of this id. Raises DataError, naming who asked, where there is none."""
        hashes, rows = self._places
        place = int(np.searchsorted(hashes, text_id(str(wanted))))
        if place == hashes.size or hashes[place] != text_id(str(wanted)) or self._id(int(rows[place])) != str(wanted):
            raise DataError(
                f"{asked}: {self.lines.path} has no {self.id_keys[0]} {wanted!r}. Is it the file for these rows?"
            )
        row = int(rows[place])
        return _titled(self.lines.json(row), self.text_keys, self._at(row))

    @cached_property
    def _places(self) -> tuple[Ints, Ints]:
        """(hashes of the ids in order, the row of each). Raises DataError where an id is there twice."""
        count = len(self.lines)
        hashes = np.fromiter((text_id(self._id(row)) for row in range(count)), dtype=np.int64, count=count)
        rows = np.argsort(hashes, kind="stable")
        hashes = hashes[rows]
        twice = np.flatnonzero(hashes[1:] == hashes[:-1])
        if twice.size:
            first, second = sorted((int(rows[twice[0]]), int(rows[twice[0] + 1])))
            raise DataError(
                f"{self._at(second)}: the id {self._id(second)!r} is that of line {self.lines.number(first)}. Every text needs "
                "an id of its own."
            )
        return hashes, rows

    def _id(self, row: int) -> str:
        values = self.lines.json(row)
        found = next((values[key] for key in self.id_keys if key in values), None)
        if isinstance(found, bool) or not isinstance(found, str | int):
            raise DataError(f"{self._at(row)}: {self.id_keys[0]} is {found!r}. Expected a text or a whole number.")
        return str(found)

    def _at(self, row: int) -> str:
        return f"{self.lines.path}, line {self.lines.number(row)}"


def _titled(values: Mapping[str, Any], text_keys: Sequence[str], where: str) -> str:
    key = next((key for key in text_keys if key in values), text_keys[0])
    text = _string(values, key, where)
    title = values.get("title") or ""
    return f"{title} {text}" if title else text


def _string(values: Mapping[str, Any], key: str, where: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {value!r}. Expected a text.")
    return value


def _list(values: Mapping[str, Any], key: str, kinds: tuple[type, ...], where: str) -> list[Any]:
    """A list of values of these types; none where the key is not there."""
    found = values.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, kinds) and not isinstance(one, bool) for one in found):
        raise DataError(
            f"{where}: {key} is {str(found)[:60]!r}. Expected a list of {' or '.join(kind.__name__ for kind in kinds)}."
        )
    return found


def _existing(path: Path) -> Path:
    """The file, or the same packed."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path
