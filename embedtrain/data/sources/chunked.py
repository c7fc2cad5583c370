"""Documents in chunks, with the chunk that answers: for late chunking with in-sequence negatives (InSeNT)."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard, Unpack

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.lines import LinesFile
from embedtrain.errors import DataError
from embedtrain.types import TrainingExample


class ChunkedDocuments(Source):
    """A `.jsonl` or `.jsonl.gz` file of `{"query": str, "chunks": [str, ...], "answer": int}`, the answer counted from 0.

    The chunk that answers is the positive, the others of its document are hard negatives, and all of them are read as one
    text (Conti et al. 2025, arXiv:2505.24782). The pooling must be mean or max, and encoder.max_document_length as long as
    the longest document. Keep num_negatives at null, or documents are read with some of their chunks missing.

    path   the file
    The others are those of every `Source`.
    """

    def __init__(self, *, path: str, **common: Unpack[SourceSettings]) -> None:
        super().__init__(**common)
        self.lines = LinesFile(Path(path).expanduser())

    @property
    def where(self) -> str:
        return str(self.lines.path)

    def _count(self) -> int:
        return len(self.lines)

    def _read(self, row: int) -> TrainingExample:
        values = self.lines.json(row)
        query, chunks, answer = values.get("query"), values.get("chunks"), values.get("answer")
        if not (isinstance(query, str) and _are_texts(chunks) and isinstance(answer, int)) or answer not in range(
            len(chunks)
        ):
            raise DataError(
                f"{self.where}, line {self.lines.number(row)}: expected a query, chunks (a list of texts) and answer, the number "
                f"of the chunk that answers, from 0; got {str(values)[:200]}."
            )
        # A chunk that stands there twice is no negative of itself.
        others = [number for number, chunk in enumerate(chunks) if chunk != chunks[answer]]
        return TrainingExample(
            query=query,
            positives=(chunks[answer],),
            negatives=tuple(chunks[number] for number in others),
            order=(answer, *others),
            row=self.lines.where(row),
        )


def _are_texts(chunks: object) -> TypeGuard[list[str]]:
    return isinstance(chunks, list) and all(isinstance(chunk, str) for chunk in chunks)
