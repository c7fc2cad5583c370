"""Rows of document ids and a corpus, as Tevatron reads them (github.com/texttron/tevatron)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from embedtrain.data.writers.files import Lines, named, staged
from embedtrain.data.writers.ids import content_id, with_new_texts
from embedtrain.data.writers.rows import MinedRow, Written, count_lost


def write_tevatron(folder: Path, name: str, rows: Iterable[MinedRow]) -> Written:
    """A folder `<name>` of two files, one object on each line:

        train.jsonl    {"query_id": str, "query_text": str, "positive_document_ids": [str], "negative_document_ids": [str]}
        corpus.jsonl   {"docid": str, "text": str}, each document of the rows once

    Its loader draws negatives from each row: rows without any are left out.
    """
    folder = named(folder, name)
    train, corpus = folder / "train.jsonl", folder / "corpus.jsonl"
    lost: Counter[str] = Counter()
    count = 0

    def kept() -> Iterator[MinedRow]:
        for row in rows:
            if row.example.negatives:
                yield row
            else:
                lost["rows_without_negatives"] += 1

    with staged(corpus, train) as partial, Lines(partial[0]) as documents, Lines(partial[1]) as queries:
        for row, _, new in with_new_texts(kept()):
            example = row.example
            for text in new:
                documents.add({"docid": content_id(text), "text": text}, example.row)
            line = {
                "query_id": content_id(example.query),
                "query_text": example.query,
                "positive_document_ids": list(map(content_id, example.positives)),
                "negative_document_ids": list(map(content_id, example.negatives)),
            }
            queries.add(line, example.row)
            count_lost(lost, row)
            count += 1
    return Written((corpus, train), count, dict(lost))
