"""Where the numbers of a run go. Rank 0 alone holds trackers; one file each; JSONL is always on."""

from __future__ import annotations

from typing import Any, Protocol


class Tracker(Protocol):
    """A place for numbers by step. `start` is called once, `log` in the order of steps, `finish` also after a failure."""

    def start(self, *, run_name: str, run_dir: str, config: dict[str, Any], resumed: bool) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def finish(self) -> None: ...
