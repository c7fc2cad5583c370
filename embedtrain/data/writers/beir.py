"""A BEIR folder, and beside it the negatives, for which BEIR has no place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedtrain.data.writers.files import Lines, named, staged
from embedtrain.data.writers.ids import content_id, with_new_texts
from embedtrain.data.writers.rows import MinedRow, Written, count_lost


def write_beir(folder: Path, name: str, rows: Iterable[MinedRow]) -> Written:
    """A folder `<name>` of four files:

        corpus.jsonl      {"_id": str, "title": "", "text": str}, each document of the rows once
        queries.jsonl     {"_id": str, "text": str}, each query once
        qrels/train.tsv   query-id, corpus-id, 1: the positives, under a header
        negatives.jsonl   {"query-id": str, "negatives": [{"corpus-id": str, "score": number or null, "rank": int,
                          "reason": str}], "by": str}, one for each row. Not part of BEIR: its readers pass it over

    Rows that ask the same become one query with the positives of all. Readers put title and text together and cut blanks off
    the ends; texts that have some there are counted.
    """
    folder = named(folder, name)
    paths = tuple(folder / file for file in ("corpus.jsonl", "queries.jsonl", "negatives.jsonl", "qrels/train.tsv"))
    lost: Counter[str] = Counter()
    count = 0
    with (
        staged(*paths) as partial,
        Lines(partial[0]) as corpus,
        Lines(partial[1]) as queries,
        Lines(partial[2]) as negatives,
        partial[3].open("w", encoding="ascii") as judgements,
    ):
        judgements.write("query-id\tcorpus-id\tscore\n")
        for row, is_new, new in with_new_texts(rows):
            example, query = row.example, content_id(row.example.query)
            for text in new:
                corpus.add({"_id": content_id(text), "title": "", "text": text}, example.row)
                lost["texts_with_outer_blanks"] += text != text.strip()
            if is_new:
                queries.add({"_id": query, "text": example.query}, example.row)
                count += 1
            else:
                lost["rows_of_one_query"] += 1
            judgements.writelines(f"{query}\t{content_id(text)}\t1\n" for text in dict.fromkeys(example.positives))
            if example.negatives:
                negatives.add(_negatives(row, query), example.row)
            count_lost(lost, row, ("ranks_and_reasons",) if row.scores is not None else ("ranks_and_reasons", "scores"))
    return Written(paths, count, dict(+lost))


def _negatives(row: MinedRow, query: str) -> dict[str, Any]:
    each = zip(row.example.negatives, row.known_scores, row.ranks, row.reasons, strict=True)
    found = [
        {
            "corpus-id": content_id(text),
            "score": score,
            "rank": int(rank),
            "reason": reason,
        }
        for text, score, rank, reason in each
    ]
    return {"query-id": query, "negatives": found, "by": row.scored_by}
