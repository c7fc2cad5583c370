"""A BEIR folder as training rows: a query and all documents that are judged to answer it.

    corpus.jsonl       {"_id": str, "title": str, "text": str}
    queries.jsonl      {"_id": str, "text": str}
    qrels/<split>.tsv  query-id <TAB> corpus-id <TAB> score, after a header

Each may also be a `.gz`. Ids are text. Only judgements are held in memory; texts are read where they lie.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Unpack

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.lines import LinesFile
from embedtrain.errors import DataError
from embedtrain.types import TrainingExample


class BeirFolder(Source):
    """One split of a BEIR folder. Queries without an answer are left out; a document is its title, a space and its text.

    path    the folder
    split   which `qrels/<split>.tsv`
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        split: str = "train",
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        self.folder = Path(path).expanduser()
        self.split = split
        self.corpus = LinesFile(self._find("corpus.jsonl"))
        self.queries = LinesFile(self._find("queries.jsonl"))
        self.qrels = LinesFile(self._find(f"qrels/{split}.tsv"))

    @property
    def where(self) -> str:
        return str(self.qrels.path)

    def _count(self) -> int:
        return len(self._answers)

    def _read(self, row: int) -> TrainingExample:
        query, answers = self._answers[row]
        return TrainingExample(
            query=self._string(self.queries, query, "text"),
            positives=tuple(self._document(answer) for answer in answers),
            row=f"{self.folder.name}/{self.queries.where(query)}",
        )

    @cached_property
    def _answers(self) -> list[tuple[int, tuple[int, ...]]]:
        """(line of the query, lines of its answers), in the order of the judgements."""
        judged: dict[str, list[str]] = {}
        for row in range(1, len(self.qrels)):
            query, document, grade = self._judgement(row)
            answers = judged.setdefault(query, [])
            if grade > 0 and document not in answers:
                answers.append(document)
        wanted = {document for answers in judged.values() for document in answers}
        query_at = self._places(self.queries, set(judged))
        document_at = self._places(self.corpus, wanted)
        return [
            (query_at[query], tuple(document_at[document] for document in answers))
            for query, answers in judged.items()
            if answers
        ]

    def _judgement(self, row: int) -> tuple[str, str, int]:
        fields = self.qrels.text(row).split("\t")
        try:
            query, document, grade = fields
            return query, document, int(grade)
        except ValueError:
            raise DataError(
                f"{self.qrels.path}, line {self.qrels.number(row)}: {'<TAB>'.join(fields)[:80]!r}. "
                "Expected query-id <TAB> corpus-id <TAB> whole number."
            ) from None

    @staticmethod
    def _places(file: LinesFile, wanted: set[str]) -> dict[str, int]:
        """Rows of these ids. Raises DataError where one is missing or there twice."""
        places: dict[str, int] = {}
        for row in range(len(file)):
            number = file.json(row).get("_id")
            if number is None:
                raise DataError(f"{file.path}, line {file.number(row)}: there is no key '_id'.")
            if str(number) in places:
                raise DataError(f"{file.path}, line {file.number(row)}: the id {number!r} is there a second time.")
            if str(number) in wanted:
                places[str(number)] = row
        missing = sorted(wanted - places.keys())
        if missing:
            raise DataError(
                f"{file.path} lacks {len(missing)} of the {len(wanted)} ids that the judgements name, {missing[0]!r} for one."
            )
        return places

    def _document(self, row: int) -> str:
        title = self.corpus.json(row).get("title") or ""
        return f"{title} {self._string(self.corpus, row, 'text')}".strip()

    @staticmethod
    def _string(file: LinesFile, row: int, key: str) -> str:
        value = file.json(row).get(key)
        if not isinstance(value, str):
            raise DataError(f"{file.path}, line {file.number(row)}: {key} is {value!r}. Expected a text.")
        return value

    def _find(self, name: str) -> Path:
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.is_file():
                return path
        splits = ", ".join(sorted(p.name.split(".tsv")[0] for p in (self.folder / "qrels").glob("*.tsv*"))) or "none"
        raise DataError(
            f"{self.folder / name} does not exist (nor as .gz). A BEIR folder has corpus.jsonl, queries.jsonl and "
            f"qrels/<split>.tsv; the splits there are: {splits}."
        )
