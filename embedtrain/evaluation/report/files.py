"""What a run directory tells of its run. Whatever is not there is missing, and said to be so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from embedtrain.errors import DataError
from embedtrain.evaluation.result import EvaluationResult, read_results

Points = list[tuple[int, float]]  # (step, value), steps rising


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of a run, read. Empty where a file is not there; `missing` says which and what that means."""

    dir: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    overrides: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    first_step: dict[str, Any] = field(default_factory=dict)  # what a query is contrasted with
    series: dict[str, Points] = field(default_factory=dict)  # "train/loss" -> points
    not_finite: dict[str, int] = field(default_factory=dict)  # "train/loss" -> logged values that were no numbers
    seconds: float | None = None  # between the first and the last line of the log
    before: dict[str, EvaluationResult] = field(default_factory=dict)
    after: dict[str, EvaluationResult] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.setting("run.name") or self.dir.name

    @property
    def backbone(self) -> str:
        """The name of its model, or of both."""
        node = self.setting("backbone") or {}
        named = [node, *(part for part in node.values() if isinstance(part, dict))]
        return " + ".join(str(part["name"]) for part in named if part.get("name"))

    def setting(self, key: str) -> Any:
        """`run.name` of the resolved config; None where there is none."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node


def read_run(directory: str | Path) -> RunFiles:
    """Read a run directory. Raises DataError when there is no such folder, or when a file that is there is broken."""
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder. Expected the directory of a run.")
    missing: list[str] = []

    def text(name: str, meaning: str) -> str:
        path = directory / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
        missing.append(f"{name} is not there: {meaning}.")
        return ""

    def results(name: str, when: str) -> dict[str, EvaluationResult]:
        path = directory / "evaluation" / name
        if path.is_file():
            return read_results(path)
        missing.append(f"evaluation/{name} is not there: nothing was measured {when} training.")
        return {}

    config_text = text("config.yaml", "the settings of the run are unknown")
    environment = text("environment.json", "command, versions and hardware are unknown")
    config = OmegaConf.to_container(OmegaConf.create(config_text)) if config_text else {}
    assert isinstance(config, dict)
    stages = [str(name) for name, node in (config.get("stages") or {}).items() if node is not None]
    last = f"stages/{stages[-1]}/" if stages else ""  # curves are those of the last stage
    first_step = text(f"{last}negatives.json", "what a query was contrasted with is unknown")
    series, not_finite, seconds = _series(text(f"{last}metrics.jsonl", "there are no curves"))
    overrides = directory / "overrides.txt"
    return RunFiles(
        dir=directory,
        config={str(key): value for key, value in config.items()},
        config_text=config_text,
        overrides=overrides.read_text(encoding="utf-8").splitlines() if overrides.is_file() else [],
        environment=_json(directory / "environment.json", environment),
        first_step=_json(directory / f"{last}negatives.json", first_step),
        series=series,
        not_finite=not_finite,
        seconds=seconds,
        before=results("before.json", "before"),
        after=results("after.json", "after"),
        missing=missing,
    )


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        return json.loads(text) if text else {}
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def _series(log: str) -> tuple[dict[str, Points], dict[str, int], float | None]:
    """Lines {"step": ..., "time": ..., "train/loss": ...} as points by name. A last line cut short is left out."""
    series: dict[str, Points] = {}
    not_finite: dict[str, int] = {}
    times = []
    for line in log.splitlines():
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if isinstance(time := row.pop("time", None), int | float):
            times.append(time)
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((step, float(value)))
            elif value is None or isinstance(value, float):
                not_finite[name] = not_finite.get(name, 0) + 1
    seconds = times[-1] - times[0] if len(times) > 1 else None
    return {name: sorted(points) for name, points in series.items()}, not_finite, seconds
