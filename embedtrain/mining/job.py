"""What is done with mined negatives: a version for a training run, or rows, audit and report for `embedtrain mine`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.data.mined import NOTHING, MinedRows, write_mined
from embedtrain.data.sources import Source
from embedtrain.encoder import Encoder
from embedtrain.errors import DataError
from embedtrain.mining.miner import MinedSource, Miner
from embedtrain.mining.records import NO_DOCUMENT, MiningData
from embedtrain.store.ranks import on_main

log = logging.getLogger("embedtrain")


def write_version(
    miner: Miner,
    sources: Mapping[str, Source],
    encoder: Encoder,
    folder: Path,
    *,
    step: int,
    store: Path | None = None,
) -> None:
    """Mines for all sources and writes what a training run reads (`data/mined.py`). Every rank calls it.

    `store`: of embeddings, in place of the miner's own. Raises DataError, on every rank, where it cannot be written.
    """
    rows: dict[str, MinedRows] = {}
    keep_own = miner.own_negatives == "keep"

    def write() -> None:
        manifest = {
            "step": step,
            "keep_own": keep_own,
            "rows": {name: len(source) for name, source in sources.items()},
            "short_rows": sum(int((own.negatives == NOTHING).any(axis=1).sum()) for own in rows.values()),
        }
        try:
            write_mined(folder, rows, manifest)
        except OSError as error:
            raise DataError(f"{folder}: mined negatives could not be written ({error}). Free some space.") from error

    for name, source in sources.items():
        found = miner.mine(source, name, encoder, store=store)
        if distributed.is_main():
            rows[name] = rows_of(found, source, keep_own=keep_own)
    on_main(write)


def rows_of(found: MinedSource, source: Source, *, keep_own: bool) -> MinedRows:
    """The negatives of each query, for each row that asks it; with scores where a rescorer gave them.

    A row that keeps its own does not get them twice.
    """
    documents = found.mined.documents[found.data.query_of_row]  # [R, K]
    scores = found.mined.scores[found.data.query_of_row]
    if keep_own:
        _take_out_own(documents, scores, found.data, source)
    used, numbers = np.unique(documents, return_inverse=True)
    numbers = numbers.reshape(documents.shape).astype(np.int64)
    if used.size and used[0] == NO_DOCUMENT:
        used, numbers = used[1:], numbers - 1  # NOTHING is -1 too
    texts = [found.data.documents[document] for document in used.tolist()]
    if not found.is_rescored:
        return MinedRows(texts, numbers)
    return MinedRows(texts, numbers, scores, *positive_scores(found, source))


def positive_scores(found: MinedSource, source: Source) -> tuple[np.ndarray, Ints]:
    """Scores of the positives of each row, row by row [P'], and where those of each row begin [R + 1]."""
    data, values, offsets = found.data, [], [0]
    for row, example in enumerate(source):
        query = int(data.query_of_row[row])
        first = int(data.positive_offsets[query])
        place = {data.documents[d]: first + i for i, d in enumerate(data.positives_of(query).tolist())}
        values += [found.mined.positive_scores[place[text]] for text in example.positives]
        offsets.append(len(values))
    return np.array(values, dtype=np.float32), np.array(offsets, dtype=np.int64)


def _take_out_own(documents: Ints, scores: np.ndarray, data: MiningData, source: Source) -> None:
    """What a row has already goes from its mined negatives, which close up; in place."""
    for row, example in enumerate(source):
        own = set(example.negatives)
        if not own:
            continue
        kept = [k for k, d in enumerate(documents[row].tolist()) if d != NO_DOCUMENT and data.documents[d] not in own]
        documents[row, : len(kept)], scores[row, : len(kept)] = documents[row, kept], scores[row, kept]
        documents[row, len(kept) :], scores[row, len(kept) :] = NO_DOCUMENT, np.nan
