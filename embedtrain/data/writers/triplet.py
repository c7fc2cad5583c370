"""Triplets for sentence-transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedtrain.data.writers.files import named, staged
from embedtrain.data.writers.rows import MinedRow, Written, count_lost
from embedtrain.data.writers.tables import SCORES, TEXT, without, write_table

_SCHEMA = pa.schema([("anchor", TEXT), ("positive", TEXT), ("negative", TEXT), ("scores", SCORES)])


def write_triplet(folder: Path, name: str, rows: Iterable[MinedRow]) -> Written:
    """`<name>.parquet` with the columns anchor, positive, negative, and scores [of the positive, of the negative] where all
    rows have them: a row for each pair of a positive and a negative.

    Rows without negatives give none. Rows of one anchor must not meet in a batch: train with
    `batch_sampler=BatchSamplers.NO_DUPLICATES`.
    """
    path = named(folder, name, ".parquet")
    lost: Counter[str] = Counter()
    count = with_all_scores = with_some_scores = num_kept = 0

    def triplets() -> Iterator[tuple[dict[str, Any], str]]:
        nonlocal count, with_all_scores, with_some_scores, num_kept
        for row in rows:
            example, scores = row.example, row.scores
            if not example.negatives:
                lost["rows_without_negatives"] += 1
                continue
            count_lost(lost, row, ("scores",))
            num_kept += 1
            with_all_scores += scores is not None
            with_some_scores += row.has_some_scores
            for p, positive in enumerate(example.positives):
                for n, negative in enumerate(example.negatives, len(example.positives)):
                    count += 1
                    values = {"anchor": example.query, "positive": positive, "negative": negative}
                    yield {**values, "scores": None if scores is None else [scores[p], scores[n]]}, example.row

    with staged(path) as (partial,):
        write_table(partial, _SCHEMA, triplets())
        if with_all_scores < num_kept or not num_kept:
            without(partial, _SCHEMA, "scores")
            lost["scores"] += with_some_scores
    return Written((path,), count, dict(+lost))
