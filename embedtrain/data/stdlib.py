"""Real pairs that every machine has: docstring -> source of the functions of the installed Python standard library.

1. Read every module by its syntax tree; nothing is imported. Tests are left out.
2. The query is the first paragraph of a docstring, at least 4 words. The document is the function without its docstring (and
   without those of functions inside it), at least 20 characters, with something in its body.
3. Drop every query and every document seen before.
4. Split by top-level module (all of `asyncio` goes to one side), by a hash of its name: 3 of 5 train, 1 dev, 1 test.

The result is a folder: `train.jsonl`, `heldout/` (a BEIR folder with dev and test) and `manifest.json`. It is made once,
in a few seconds, and found again by Python version.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import xxhash

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.beir import BeirFolder
from embedtrain.data.sources.jsonl import JsonLines
from embedtrain.errors import DataError
from embedtrain.types import TrainingExample

FORMAT = 1  # part of the folder's name: raised when the pairs are made in another way
MIN_QUERY_WORDS = 4
MIN_CODE_CHARACTERS = 20
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "__phello__"}

Split = Literal["train", "dev", "test"]
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Pair:
    """A docstring's first paragraph and the function it describes."""

    place: str  # "asyncio/tasks.py:412"
    query: str
    code: str

    @property
    def module(self) -> str:
        """The top-level module; `_x` and `_pyx` are the other half of `x` and stay with it."""
        return self.place.split(":")[0].split("/")[0].removesuffix(".py").removeprefix("_py").lstrip("_")

    @property
    def split(self) -> Split:
        fifth = xxhash.xxh3_64_intdigest(self.module.encode()) % 5
        return "dev" if fifth == 0 else "test" if fifth == 1 else "train"


class StandardLibraryPairs(Source):
    """Rows of the pairs of this Python's standard library, made at first use.

    split    "train", or the held-out "dev" or "test"
    folder   where the pairs are or shall be (null = the user's cache)
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        split: Split = "train",
        folder: str | None = None,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        made = prepare(folder)
        self.inner: Source
        if split == "train":
            self.inner = JsonLines(path=str(made / "train.jsonl"))
        else:
            self.inner = BeirFolder(path=str(made / "heldout"), split=split)

    @property
    def where(self) -> str:
        return f"Python {platform.python_version()} standard library ({self.inner.where})"

    def _count(self) -> int:
        return len(self.inner)

    def _read(self, row: int) -> TrainingExample:
        return self.inner[row]


def prepare(folder: str | None = None) -> Path:
    """The folder of the pairs; made if it is not there. Safe when many processes ask at once: it appears whole or not."""
    target = Path(folder).expanduser() if folder is not None else _cache() / _key()
    if (target / "manifest.json").is_file():
        return target
    if target.exists() and any(target.iterdir()):
        raise DataError(
            f"{target} is not empty and has no manifest.json of standard-library pairs. Name another folder."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise DataError(f"{target} cannot be made: {error}. Name a folder that can be written to.") from None
    try:
        write(scratch, read_pairs())
        try:
            scratch.replace(target)
        except OSError:  # another process was first
            if not (target / "manifest.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def read_pairs(root: Path | None = None) -> list[Pair]:
    """All pairs, without doubles, in the order of file names."""
    queries: set[str] = set()
    codes: set[str] = set()
    pairs = []
    for pair in _all_pairs(root or Path(sysconfig.get_path("stdlib"))):
        if pair.query in queries or pair.code in codes:
            continue
        queries.add(pair.query)
        codes.add(pair.code)
        pairs.append(pair)
    return pairs


def write(folder: Path, pairs: list[Pair]) -> None:
    """`train.jsonl`, `heldout/` and `manifest.json`."""
    held = [pair for pair in pairs if pair.split != "train"]
    (folder / "heldout" / "qrels").mkdir(parents=True)
    _write_lines(
        folder / "train.jsonl", ({"query": p.query, "positives": [p.code]} for p in pairs if p.split == "train")
    )
    _write_lines(folder / "heldout/corpus.jsonl", ({"_id": p.place, "title": "", "text": p.code} for p in held))
    _write_lines(folder / "heldout/queries.jsonl", ({"_id": f"q/{p.place}", "text": p.query} for p in held))
    for split in ("dev", "test"):
        lines = [f"q/{p.place}\t{p.place}\t1\n" for p in held if p.split == split]
        (folder / f"heldout/qrels/{split}.tsv").write_text("".join(["query-id\tcorpus-id\tscore\n", *lines]), "utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "pairs": {split: sum(p.split == split for p in pairs) for split in ("train", "dev", "test")},
        "modules": {split: sorted({p.module for p in pairs if p.split == split}) for split in ("train", "dev", "test")},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "licence": "PSF-2.0 (the Python Software Foundation's, as the library itself)",
        "sha256": {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "embedtrain"


def _key() -> str:
    """Two interpreters may be of one version and yet ship other modules, so the place counts too."""
    place = xxhash.xxh3_64_hexdigest(sysconfig.get_path("stdlib").encode())[:8]
    return f"stdlib-pairs-{FORMAT}-{sys.implementation.name}-{platform.python_version()}-{place}"


def _all_pairs(root: Path) -> Iterator[Pair]:
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if _LEFT_OUT.isdisjoint(inside.parts):
            yield from _pairs_of(path, inside.as_posix())


def _pairs_of(path: Path, place: str) -> Iterator[Pair]:
    source = path.read_bytes()
    try:
        tree = ast.parse(source)
        source.decode("utf-8")  # a few modules are in another encoding, which byte offsets below do not fit
    except (SyntaxError, UnicodeDecodeError):
        return
    lines = source.splitlines(keepends=True)
    functions = [node for node in ast.walk(tree) if isinstance(node, _Function)]
    for node in sorted(functions, key=lambda node: node.lineno):
        query, code = _query(node), _code(node, lines)
        if query is not None and len(code) >= MIN_CODE_CHARACTERS:
            yield Pair(f"{place}:{node.lineno}", query, code)


def _query(node: _Function) -> str | None:
    """The first paragraph of the docstring on one line, if the function has more than a docstring."""
    docstring = ast.get_docstring(node)
    body = [s for s in node.body[1:] if not isinstance(s, ast.Pass)]
    if not docstring or not body:
        return None
    query = " ".join(docstring.strip().split("\n\n")[0].split())
    return query if len(query.split()) >= MIN_QUERY_WORDS else None


def _code(node: _Function, lines: list[bytes]) -> str:
    """The function's source without docstrings, moved to the left margin."""
    first, last = node.lineno - 1, node.end_lineno
    kept = lines[first:last]
    for inner in ast.walk(node):
        docstring = _docstring_node(inner)
        if docstring is not None:
            _cut(kept, docstring, first)
    margin = node.col_offset
    text = b"".join(line[margin:] if line[:margin].isspace() else line for line in kept if line.strip())
    return text.decode("utf-8").strip()


def _docstring_node(node: ast.AST) -> ast.Expr | None:
    if not isinstance(node, _Function | ast.ClassDef):
        return None
    match node.body[0]:
        case ast.Expr(value=ast.Constant(value=str())) as statement:
            return statement
    return None


def _cut(lines: list[bytes], node: ast.Expr, first: int) -> None:
    """Takes a statement out of `lines`, which begin at line `first` of the file; columns are counted in bytes."""
    start, stop = node.lineno - 1 - first, (node.end_lineno or node.lineno) - 1 - first
    tail = lines[stop][node.end_col_offset or 0 :].lstrip(b" ;")
    lines[start] = lines[start][: node.col_offset] + (tail if start == stop else b"\n")
    for number in range(start + 1, stop + 1):
        lines[number] = tail if number == stop else b""
