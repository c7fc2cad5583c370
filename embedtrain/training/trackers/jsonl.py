"""metrics.jsonl: one JSON object a line, written through at once, so that a killed run keeps its numbers."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, TextIO


class JsonLinesTracker:
    """Appends `{"step": n, "time": unix seconds, "train/loss": ...}` to <run>/metrics.jsonl.

    A resumed run first drops the lines of steps that it is going to make again, so each step stands there once.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._path = Path()

    def start(self, *, run_name: str, run_dir: str, config: dict[str, Any], resumed: bool) -> None:
        self._path = Path(run_dir) / "metrics.jsonl"
        self._file = self._path.open("a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step` updates, and a last line that a kill cut short."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue
        if self._file is not None:
            self._file.close()
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        partial.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        assert self._file is not None, "start() comes before log()"
        # JSON has no NaN: a value that is not finite is written as null and so stays readable everywhere.
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **numbers}) + "\n")
        self._file.flush()

    def finish(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
