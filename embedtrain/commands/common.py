"""What several commands do."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedtrain.commands.arguments import Arguments
from embedtrain.errors import ConfigError

if TYPE_CHECKING:
    from embedtrain.config.compose import Composed
    from embedtrain.run import Run

log = logging.getLogger("embedtrain")


def compose(arguments: Arguments, *, world: int | None = None) -> tuple[Composed, list[str]]:
    from embedtrain.config.compose import compose_config
    from embedtrain.config.validate import validate

    composed = compose_config(arguments.overrides, config_dir=arguments.config_dir, from_run=arguments.from_run)
    return composed, validate(composed.config, composed.problems, world=world)


def join_ranks() -> None:
    """The process group that the launcher asked for. Without a GPU accelerate has to be told that CPUs are meant."""
    import torch
    from accelerate import PartialState

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    PartialState()


def announce(run: Run, warnings: Sequence[str]) -> None:
    log.info("run %s%s", run.dir, ", resumed" if run.resumed else "")
    for note in run.notes:
        log.info("changed since the start: %s", note)
    for warning in warnings:
        log.warning("%s", warning)


def dimensions(arguments: Arguments) -> int | None:
    """Dimensions of the embedding: of the layer that a folder has for them, or its first so many."""
    text = arguments.take("dim", "")
    if text and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"dim={text}: expected a number of dimensions, at least 1.")
    return int(text) if text else None


def run_directory(arguments: Arguments) -> Path:
    run = Path(arguments.required("run", "a run directory"))
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"run={run}: {run.absolute()} is no run directory (it has no config.yaml).")
    return run


def refuse_rest(arguments: Arguments, takes: str) -> None:
    if arguments.overrides:
        raise ConfigError(f"{arguments.overrides[0]}: {takes}.")
