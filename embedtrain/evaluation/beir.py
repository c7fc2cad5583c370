"""BEIR folders: `corpus.jsonl`, `queries.jsonl` (each also as `.gz`) and `qrels/<split>.tsv`.

corpus.jsonl      {"_id": "d1", "title": "may be empty", "text": "..."}
queries.jsonl     {"_id": "q1", "text": "..."}
qrels/test.tsv    a header line, then: query id <TAB> document id <TAB> integer grade (above 0: relevant)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedtrain.errors import DataError
from embedtrain.evaluation.files import numbered_lines
from embedtrain.evaluation.retrieval_data import RetrievalData


def read_beir(folder: str | Path, split: str = "test") -> RetrievalData:
    """One split of a BEIR folder. A document is its title, a space and its text, as the benchmarks encode it.

    Raises DataError, with file, line and key, for what is missing, malformed, doubled or points nowhere.
    """
    folder = Path(folder)
    documents = {key: _document(row, where) for key, row, where in _rows(_find(folder, "corpus.jsonl"))}
    queries = {key: _text(row, where) for key, row, where in _rows(_find(folder, "queries.jsonl"))}
    judgements = _judgements(_find(folder, f"qrels/{split}.tsv"), queries, documents)
    return RetrievalData(
        name=f"{folder.resolve().name}/{split}",
        documents=documents,
        queries={key: text for key, text in queries.items() if key in judgements},
        judgements=judgements,
        own_documents=_own_documents(queries, documents, judgements),
        num_unjudged=len(queries) - len(judgements),
    )


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder. Expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/<split>.tsv)."
        )
    message = f"{folder / name}: no such file (nor {name}.gz)."
    splits = sorted(path.name.split(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*"))
    if name.startswith("qrels") and splits:
        message += f" The splits there are: {', '.join(splits)}."
    raise DataError(message)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(id, row, place) of a JSONL file whose rows have unique `_id`s."""
    places: dict[str, str] = {}
    for line, where in numbered_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("_id"), str | int):
            raise DataError(f'{where}: expected an object with an "_id", got {line[:80]!r}')
        key = str(row["_id"])
        if key in places:
            raise DataError(f'{where}: "_id" {key!r} is already used at {places[key]}. Ids must be unique.')
        places[key] = where
        yield key, row, where


def _text(row: dict[str, Any], where: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(f'{where}: expected a string under "text", got {text!r} (keys: {", ".join(row)})')
    return text


def _document(row: dict[str, Any], where: str) -> str:
    title = row.get("title") or ""
    if not isinstance(title, str):
        raise DataError(f'{where}: expected a string under "title", got {title!r}')
    return f"{title} {_text(row, where)}".strip()


def _judgements(path: Path, queries: dict[str, str], documents: dict[str, str]) -> dict[str, dict[str, int]]:
    """Grades of the queries that at least one document answers; a query judged only at 0 cannot be asked anything."""
    grades: dict[str, dict[str, int]] = {}
    lines = numbered_lines(path)
    header, where = next(lines)
    if header.split("\t")[-1].strip().isdigit():
        raise DataError(f"{where}: expected the header 'query-id<TAB>corpus-id<TAB>score', got a judgement: {header!r}")
    for line, where in lines:
        fields = line.split("\t")
        if len(fields) != 3 or not fields[2].strip().lstrip("-").isdigit():
            raise DataError(
                f"{where}: expected query id, document id and an integer grade with tabs between, got {line!r}"
            )
        query, document, grade = fields[0], fields[1], int(fields[2])
        if query not in queries:
            raise DataError(f"{where}: query {query!r} is not in queries.jsonl")
        if document not in documents:
            raise DataError(f"{where}: document {document!r} is not in corpus.jsonl")
        if grades.setdefault(query, {}).get(document, grade) != grade:
            raise DataError(
                f"{where}: ({query!r}, {document!r}) was judged {grades[query][document]} before and {grade} here"
            )
        grades[query][document] = grade
    answered = {query: judged for query, judged in grades.items() if max(judged.values()) > 0}
    if not answered:
        raise DataError(f"{path}: no document is judged relevant (a grade above 0) to any query")
    return answered


def _own_documents(
    queries: dict[str, str], documents: dict[str, str], judgements: dict[str, dict[str, int]]
) -> dict[str, str]:
    """Queries that are documents of the corpus themselves, as in ArguAna and Quora: same id and same words.

    The benchmarks leave such a document out of the query's ranking. The words are compared too, since in other sets plain
    numbers are ids on both sides and meet by accident.
    """
    return {
        query: query
        for query in judgements
        if query in documents
        and query not in judgements[query]
        and " ".join(queries[query].split()) in " ".join(documents[query].split())
    }
