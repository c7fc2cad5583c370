"""Rows of one positive and n negatives for sentence-transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedtrain.data.writers.files import named, staged
from embedtrain.data.writers.rows import MinedRow, Written, count_lost
from embedtrain.data.writers.tables import SCORES, TEXT, TEXTS, rewrite_table, write_table
from embedtrain.errors import ConfigError

_STAGED = pa.schema([("anchor", TEXT), ("positive", TEXT), ("negatives", TEXTS), ("scores", SCORES)])


def write_n_tuple(folder: Path, name: str, rows: Iterable[MinedRow], *, num_negatives: int | None = None) -> Written:
    """`<name>.parquet` with the columns anchor, positive, negative_1, ..., negative_n, and scores [of the positive, of each
    negative] where all rows have them: a row for each positive.

    Every row of a table has every column: rows with fewer than n negatives are left out. `num_negatives` is n (null: as many
    as the longest row has); of a row that has more, the first are taken. Rows of one anchor must not meet in a batch:
    train with `batch_sampler=BatchSamplers.NO_DUPLICATES`.
    """
    if num_negatives is not None and num_negatives < 0:
        raise ConfigError(f"num_negatives={num_negatives}: expected 0 or more, or null.")
    path = named(folder, name, ".parquet")
    lost: Counter[str] = Counter()
    lengths: Counter[int] = Counter()  # number of negatives -> rows
    with_all_scores: Counter[int] = Counter()
    with_some_scores: Counter[int] = Counter()

    def lists() -> Iterator[tuple[dict[str, Any], str]]:
        for row in rows:
            example, scores = row.example, row.scores
            count_lost(lost, row, ("scores",))
            length = len(example.negatives)
            lengths[length] += 1
            with_all_scores[length] += scores is not None
            with_some_scores[length] += row.has_some_scores
            for number, positive in enumerate(example.positives):
                values = {"anchor": example.query, "positive": positive, "negatives": example.negatives}
                own = None if scores is None else [scores[number], *scores[len(example.positives) :]]
                yield {**values, "scores": own}, example.row

    count = 0

    def columns(table: pa.Table) -> pa.Table:
        nonlocal count
        table = table.filter(pc.greater_equal(pc.list_value_length(table["negatives"]), width))
        count += table.num_rows
        taken = [pc.list_element(table["negatives"], number) for number in range(width)]
        scores = [pc.list_slice(table["scores"], 0, width + 1)] * keeps_scores
        return pa.table([table["anchor"], table["positive"], *taken, *scores], schema=schema)

    with staged(path) as (partial,):
        write_table(partial, _STAGED, lists())
        width = max(lengths, default=0) if num_negatives is None else num_negatives

        def kept(counts: Counter[int]) -> int:
            return sum(times for length, times in counts.items() if length >= width)

        keeps_scores = 0 < kept(lengths) == kept(with_all_scores)
        lost[f"rows_with_fewer_than_{width}_negatives"] += lengths.total() - kept(lengths)
        lost["scores"] += 0 if keeps_scores else kept(with_some_scores)
        names = ["anchor", "positive", *(f"negative_{number}" for number in range(1, width + 1))]
        schema = pa.schema([(name, TEXT) for name in names] + [("scores", SCORES)] * keeps_scores)
        rewrite_table(partial, schema, columns)
    return Written((path,), count, dict(+lost))
