"""A retrieval task in memory, wherever it came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from embedtrain.errors import DataError
from embedtrain.types import TrainingExample, text_id


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalData:
    """Documents to search, queries to ask, and which documents answer which query."""

    name: str
    documents: dict[str, str]  # id -> text
    queries: dict[str, str]  # id -> text; only queries that some document answers
    judgements: dict[str, dict[str, int]]  # query id -> document id -> grade, above 0: relevant
    instructions: dict[str, str] = field(default_factory=dict)  # query id -> the instruction it brings
    own_documents: dict[str, str] = field(default_factory=dict)  # query id -> the document that is the query itself
    num_unjudged: int = 0  # queries left out since no document answers them


def data_from_pairs(pairs: Iterable[TrainingExample], name: str) -> RetrievalData:
    """Rows of pairs as a retrieval task: find a query's positives among all positives and hard negatives of all rows.

    Equal texts are one document, and rows with the same query and instruction are one query: what answers it in one row
    is no error in another.
    """
    data = RetrievalData(name=name, documents={}, queries={}, judgements={})
    for row in pairs:
        query = _name(row.query if row.instruction is None else f"{row.instruction}\0{row.query}")
        data.queries[query] = row.query
        if row.instruction is not None:
            data.instructions[query] = row.instruction
        data.documents.update((_name(text), text) for text in row.positives + row.negatives)
        data.judgements.setdefault(query, {}).update((_name(text), 1) for text in row.positives)
    if not data.queries:
        raise DataError(f"{name}: there are no rows to evaluate on.")
    for query, text in data.queries.items():
        if _name(text) in data.documents and _name(text) not in data.judgements[query]:
            data.own_documents[query] = _name(text)
    return data


def _name(text: str) -> str:
    return f"{text_id(text):016x}"
