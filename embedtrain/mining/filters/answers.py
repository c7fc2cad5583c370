"""Replies of a judge on disk, by the content of what was asked: a question is paid for once.

    cache/answers-<process>.jsonl     {"question": <hash>, "reply": <text>} a line

Each process appends to a file of its own, line by line, so that a kill loses the questions under way and ranks do not meet.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TextIO

from embedtrain.errors import DataError


class Answers:
    """What is known in `folder`, and what is added. Raises DataError for a file that is not one of these."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / f"answers-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._file: TextIO | None = None
        self._known: dict[str, str] = {}
        for path in sorted(folder.glob("answers-*.jsonl")):
            self._known |= _read(path)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, question: str) -> bool:
        return question in self._known

    def __getitem__(self, question: str) -> str:
        return self._known[question]

    def add(self, question: str, reply: str) -> None:
        """Known from now on, also after a kill of this process."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._own.open("a", encoding="utf-8")
        self._file.write(json.dumps({"question": question, "reply": reply}) + "\n")
        self._file.flush()
        self._known[question] = reply

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _read(path: Path) -> dict[str, str]:
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # a kill cut it short
        try:
            entry = json.loads(line)
            found[str(entry["question"])] = str(entry["reply"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}:{number}: not an answer of a judge ({error!r}). Delete the line or the file."
            ) from error
    return found
