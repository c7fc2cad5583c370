"""Documents of a file: the corpus from which negatives come, where it is not the rows' own.

    *.jsonl, *.jsonl.gz   {"text": str} on each line; "title" and an id ("_id", "id" or "docid") where there are some
    *.txt                 a document on each line
    *.parquet             columns `text` and, where there is one, `title`
    a BEIR folder         its corpus.jsonl or corpus.jsonl.gz

A document with a title is the title, a space and the text, without blanks around it, as `BeirFolder` reads it for training; so
is every document of a BEIR folder. Others stand as they are, so that they are found equal to the texts of rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from embedtrain.data.sources.lines import LinesFile, not_utf8
from embedtrain.errors import DataError

_IDS = ("_id", "id", "docid")
_ROWS_AT_ONCE = 4096
_BYTES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Corpus:
    """Distinct documents in the order of the file."""

    path: Path  # of the file
    documents: list[str]
    read: int  # before equal texts became one


def read_corpus(path: str | Path) -> Corpus:
    """All documents of a file, held in memory.

    Raises DataError, naming file and line, for a document that is empty or no text, for an id that two different texts
    have, for a file without documents, and for one of another kind.
    """
    given = Path(path).expanduser()
    file = _corpus_file(given)
    name = file.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return _distinct(file, _json_lines(file, titled=given.is_dir()))
    if file.suffix == ".txt":
        return _distinct(file, _text_lines(file))
    if file.suffix == ".parquet":
        return _distinct(file, _parquet(file))
    raise DataError(
        f"{file}: not a kind of corpus that is known. Expected .jsonl, .jsonl.gz, .txt, .parquet, or a BEIR folder."
    )


def corpus_fingerprint(path: str | Path) -> str:
    """Hash of the bytes of the file: what a run that mines from it can be resumed on. Raises DataError where there is none."""
    file = _corpus_file(Path(path).expanduser())
    digest = xxhash.xxh3_128()
    try:
        with file.open("rb") as content:
            while block := content.read(_BYTES_AT_ONCE):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    return digest.hexdigest()


def _corpus_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(
            f"{path} does not exist. Expected a corpus: .jsonl, .jsonl.gz, .txt, .parquet, or a BEIR folder."
        )
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (path / name).is_file():
            return path / name
    raise DataError(
        f"{path} is a folder without corpus.jsonl (or corpus.jsonl.gz), so no BEIR folder. Name the corpus file."
    )


def _distinct(file: Path, rows: Iterator[tuple[int, str | None, str]]) -> Corpus:
    """Of (line, id, document) of each row."""
    numbers: dict[str, int] = {}  # of documents
    seen: dict[str, int] = {}  # rows by id
    document, line = array("q"), array("q")  # of each row
    for row, (number, key, text) in enumerate(rows):
        if not text.strip():
            raise DataError(f"{file}, line {number}: the document is empty. Remove the line.")
        document.append(numbers.setdefault(text, len(numbers)))
        line.append(number)
        first = row if key is None else seen.setdefault(key, row)
        if document[first] != document[row]:
            raise DataError(
                f"{file}, line {number}: the id {key!r} is that of another document in line {line[first]}. Give every document "
                "an id of its own, or remove the ids."
            )
    if not numbers:
        raise DataError(f"{file} has no documents.")
    return Corpus(file, list(numbers), len(document))


def _json_lines(file: Path, *, titled: bool) -> Iterator[tuple[int, str | None, str]]:
    """`titled`: a document without a title is one whose title is empty."""
    lines = LinesFile(file)
    for row in range(len(lines)):
        values, number = lines.json(row), lines.number(row)
        if titled:
            values.setdefault("title", "")
        yield number, _id(values, file, number), _document(values, file, number)


def _text_lines(file: Path) -> Iterator[tuple[int, str | None, str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, None, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise not_utf8(file, number, error) from None


def _parquet(file: Path) -> Iterator[tuple[int, str | None, str]]:
    """A row counts as a line, from 1."""
    try:
        with pq.ParquetFile(file) as table:
            present = table.schema_arrow.names
            if "text" not in present:
                raise DataError(f"{file}: there is no column 'text'. The columns are {', '.join(present) or 'none'}.")
            used = [name for name in ("text", "title", *_IDS) if name in present]
            number = 0
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=used):
                for values in batch.to_pylist():
                    number += 1
                    yield number, _id(values, file, number), _document(values, file, number)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not a Parquet file that can be read: {error}") from None


def _document(values: Mapping[str, Any], file: Path, number: int) -> str:
    text, title = values.get("text"), values.get("title")
    if not isinstance(text, str):
        raise DataError(
            f"{file}, line {number}: text is {_shown(text)}. Expected a text (the keys are {', '.join(values)})."
        )
    if not isinstance(title, str | None):
        raise DataError(f"{file}, line {number}: title is {_shown(title)}. Expected a text, or none.")
    return f"{title or ''} {text}".strip() if "title" in values else text


def _id(values: Mapping[str, Any], file: Path, number: int) -> str | None:
    key = next((values[name] for name in _IDS if values.get(name) is not None), None)
    if key is None:
        return None
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise DataError(f"{file}, line {number}: the id is {_shown(key)}. Expected a text or a whole number.")
    return str(key)


def _shown(value: object) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
