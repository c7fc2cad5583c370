"""One run and its directory, the same on all ranks.

    runs/quickstart/
        config.yaml         every setting, resolved; `--from-run` and resume read it
        overrides.txt       what was typed, one override a line
        environment.json    command, git commit, versions, hardware, ranks, chosen options; earlier starts below "previous"
        log.txt             what rank 0 said
        metrics.jsonl       numbers by step
        evaluation/         results before and after, by query
        checkpoints/        what a resume needs
    stages/adapt/       where a run has stages: metrics, checkpoints and weights of each
        model/              the exported model
        report.html

A used directory is never written over: its run is resumed, or the start is refused with the way out.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from embedtrain import log
from embedtrain.config.compose import load_saved
from embedtrain.config.difference import differences
from embedtrain.config.rules import world_size
from embedtrain.environment import command_line, describe
from embedtrain.errors import ConfigError


@dataclass(frozen=True)
class Standing:
    """How a run directory stands to the run that wants it."""

    resumed: bool = False  # it holds checkpoints of this config
    finished: bool = False  # and everything is done
    notes: tuple[str, ...] = ()  # settings that changed and may


@dataclass(frozen=True)
class Run:
    """A started run: its directory exists, is written down and is this process group's own."""

    dir: Path
    config: dict[str, Any]
    command: str
    resumed: bool
    finished: bool = False
    notes: tuple[str, ...] = ()  # settings that changed since the run was started, and may
    _lock: IO[str] | None = field(default=None, repr=False, compare=False)  # held open as long as the run lives

    @classmethod
    def start(
        cls, config: dict[str, Any], overrides: Sequence[str] = (), choices: Mapping[str, str] | None = None
    ) -> Run:
        """Take the directory. Every rank calls it, once the process group exists: rank 0 decides, the others are told.

        Raises ConfigError, on all ranks alike, when the directory is another run's or in use.
        """
        from embedtrain import distributed

        main = distributed.is_main()
        lock = None
        told: tuple[dict[str, Any], str, Standing] | str | None = None
        if main:
            try:
                lock, state = _take(config, overrides, choices or {})
                told = (config, command_line(), state)
            except ConfigError as error:
                told = str(error)
        told = distributed.broadcast_object(told)
        if isinstance(told, str):
            raise ConfigError(told)
        assert told is not None
        config, command, state = told
        directory = Path(config["run"]["dir"])
        log.start(directory, main=main)
        return cls(directory, config, command, state.resumed, state.finished, state.notes, lock)

    def finish(self) -> None:
        """Note that everything was done, and let go of the directory. Rank 0 alone."""
        path = self.dir / "environment.json"
        known = json.loads(path.read_text(encoding="utf-8"))
        _write(path, json.dumps(known | {"finished": _now()}, indent=2) + "\n")
        if self._lock is not None:
            self._lock.close()


def standing(config: Mapping[str, Any]) -> Standing:
    """What may be done with the directory of `config`. Writes nothing. Raises ConfigError when it may not be used."""
    directory, resume = Path(config["run"]["dir"]), config["run"]["resume"]
    shown = directory.absolute()
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run.dir: {shown} is a file. Choose another run.name or run.dir.")
    entries = [path.name for path in directory.iterdir() if path.name != ".lock"] if directory.exists() else []
    if not entries:
        if resume == "must":
            raise ConfigError(f"run.resume=must: {shown} holds no run to resume. Check run.name and run.dir.")
        return Standing()
    if "config.yaml" not in entries:
        raise ConfigError(
            f"run.dir: {shown} is not empty and holds no run (no config.yaml; it has {', '.join(sorted(entries)[:5])}). "
            "Choose another run.name or run.dir."
        )
    if resume == "never":
        raise ConfigError(
            f"run.resume=never: {shown} holds a run already. Choose another run.name, remove the directory, or let it go on "
            "with run.resume=auto."
        )
    finished = bool(_environment(directory).get("finished"))
    left = ("checkpoints/step_*", "stages/*/checkpoints/step_*", "stages/*/weights.safetensors")
    if not finished and not any(found for pattern in left for found in directory.glob(pattern)):
        if resume == "must":
            raise ConfigError(f"run.resume=must: {shown} has no checkpoint to resume from.")
        return Standing()  # it ended before its first checkpoint: nothing is lost by starting again
    return Standing(resumed=True, finished=finished, notes=_changes(directory, config))


def _changes(directory: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings that differ from the saved ones and may. Raises ConfigError for those that would change the result."""
    saved = load_saved(directory / "config.yaml")
    changed, notes = differences(saved, config)
    before = _environment(directory).get("world_size")
    if config["training"]["per_device_batch_size"] is not None and before not in (None, world_size()):
        size = config["training"]["per_device_batch_size"] * config["training"]["accumulation_steps"]
        changed.append(
            f"number of ranks: {before} then, {world_size()} now, so a step would have {size * world_size()} queries and "
            f"not {size * before} (training.global_batch_size={size * before} in place of per_device_batch_size would be "
            "independent of the ranks, in a new run)"
        )
    if changed:
        lines = "\n".join(f"  {change}" for change in changed)
        raise ConfigError(
            f"{directory.absolute()} holds a run with other settings, which cannot be resumed with these:\n{lines}\n"
            "Put the old values back to resume it, or start a new run with another run.name."
        )
    return tuple(notes)


def _take(config: dict[str, Any], overrides: Sequence[str], choices: Mapping[str, str]) -> tuple[IO[str], Standing]:
    """Lock the directory and write down what runs in it. Rank 0 alone."""
    state = standing(config)
    directory = Path(config["run"]["dir"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"run.dir: {directory.absolute()} cannot be written: {error.strerror}.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when this process ends, however it ends
    except BlockingIOError:
        raise ConfigError(
            f"run.dir: another process is training in {directory.absolute()}. Wait for it, or choose another run.name."
        ) from None
    if state.finished:
        return lock, state
    previous = _environment(directory)
    earlier = previous.pop("previous", [])
    environment = {"started": _now(), **describe(), "choices": dict(choices)}
    environment["previous"] = [*earlier, previous] if previous else earlier
    if not state.resumed:
        (directory / "metrics.jsonl").unlink(missing_ok=True)  # of a start that never reached a checkpoint
    _write(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    _write(directory / "overrides.txt", "".join(f"{override}\n" for override in overrides))
    _write(directory / "environment.json", json.dumps(environment, indent=2) + "\n")
    return lock, state


def _environment(directory: Path) -> dict[str, Any]:
    path = directory / "environment.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
