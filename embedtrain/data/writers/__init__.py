"""Training rows with mined negatives, as files that this and other training programs read. One format per file.

    MinedRow, MinedRow, ...  --WRITERS[format](folder, name, rows)-->  Written: the files, and what the format has no place for

name            files in `folder`                        read by
canonical       <name>.jsonl                             this program, without loss
flag_embedding  <name>.jsonl                             FlagEmbedding, and programs that took over its rows
triplet         <name>.parquet                           sentence-transformers
n_tuple         <name>.parquet                           sentence-transformers
labeled_list    <name>.parquet                           sentence-transformers, its rerankers
tevatron        <name>/{train,corpus}.jsonl              Tevatron
beir            <name>/{corpus,queries,negatives}.jsonl  whatever searches and evaluates; the negatives are for scripts
                and <name>/qrels/train.tsv

Every one of them is a source of training rows again (`sources/`). Rows stream: no writer holds all of them. Files get
their names when all are written in full; the one that makes the others readable is the last to get it (`files.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from embedtrain.data.writers.beir import write_beir
from embedtrain.data.writers.canonical import write_canonical
from embedtrain.data.writers.flag_embedding import write_flag_embedding
from embedtrain.data.writers.labeled_list import write_labeled_list
from embedtrain.data.writers.n_tuple import write_n_tuple
from embedtrain.data.writers.rows import MinedRow, Written
from embedtrain.data.writers.tevatron import write_tevatron
from embedtrain.data.writers.triplet import write_triplet


class Writer(Protocol):
    def __call__(self, folder: Path, name: str, rows: Iterable[MinedRow]) -> Written:
        """Write `rows` under `name` into `folder`. Raises ConfigError for a name that is no file name, DataError for a
        text that is not Unicode and for a disk that is full; then nothing is left behind."""
        ...


WRITERS: dict[str, Writer] = {
    "canonical": write_canonical,
    "flag_embedding": write_flag_embedding,
    "triplet": write_triplet,
    "n_tuple": write_n_tuple,
    "labeled_list": write_labeled_list,
    "tevatron": write_tevatron,
    "beir": write_beir,
}

__all__ = ["WRITERS", "MinedRow", "Writer", "Written"]
