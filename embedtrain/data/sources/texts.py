"""Texts without pairs, for token objectives and for SimCSE: each text is the query and its own positive."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.lines import LinesFile
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample


class Texts(Source):
    """A text per line of a `.txt`, per object of a `.jsonl` (either may be a `.gz`), or per `.txt` file below a folder.

    The row is query = text, positive = the same text: a token objective reads it once, and a contrastive loss pulls together
    what two dropout masks make of it (Gao et al. 2021, arXiv:2104.08821).

    path    the file or folder
    field   of the objects of a `.jsonl`, the key of the text
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        path: str,
        field: str = "text",
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        self.path = Path(path).expanduser()
        self.field = field
        self.files: list[Path] = sorted(self.path.rglob("*.txt")) if self.path.is_dir() else []
        if self.path.is_dir() and not self.files:
            raise DataError(f"{self.path} has no .txt file in it. Expected one for each text.")
        self.lines = None if self.files else LinesFile(self.path)
        self.is_json = ".jsonl" in self.path.suffixes
        if not self.files and not self.is_json and ".txt" not in self.path.suffixes:
            raise ConfigError(
                f"path={path}: expected a .txt or .jsonl file (or .gz of one), or a folder of .txt files."
            )

    @property
    def where(self) -> str:
        return str(self.path)

    def _count(self) -> int:
        return len(self.files) if self.lines is None else len(self.lines)

    def _read(self, row: int) -> TrainingExample:
        text, where = self._text(row)
        return TrainingExample(query=text, positives=(text,), row=where)

    def _text(self, row: int) -> tuple[str, str]:
        """The text of a row, and where it is."""
        if self.lines is None:
            return _whole(self.files[row]), self.files[row].relative_to(self.path).as_posix()
        if not self.is_json:
            return self.lines.text(row).strip(), self.lines.where(row)
        values = self.lines.json(row)
        if self.field not in values:
            raise DataError(
                f"{self.path}, line {self.lines.number(row)}: there is no {self.field!r}, but {', '.join(values) or 'nothing'}. "
                "Name the key of the text: field=..."
            )
        return values[self.field], self.lines.where(row)


def _whole(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8. Convert the file: iconv -f <its encoding> -t UTF-8."
        ) from None
