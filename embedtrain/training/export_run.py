"""The model of a run that was stopped, or exported before: its newest checkpoint as a finished, verified folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from embedtrain.assemble import build_encoder, build_sources, build_teachers
from embedtrain.config.compose import load_saved
from embedtrain.config.stages import stage_configs
from embedtrain.errors import CheckpointError
from embedtrain.export.record import RunRecord
from embedtrain.export.sentence_transformers import ExportReport, check_exportable, export
from embedtrain.training.building import build_learned, build_named
from embedtrain.training.checkpoint import Checkpoint, find_checkpoint, load_weights
from embedtrain.training.stages import take_over
from embedtrain.training.texts import whiten

log = logging.getLogger("embedtrain")


def export_run(run_dir: Path, folder: Path | None = None) -> ExportReport:
    """Write the newest whole checkpoint of `run_dir`, of its last stage begun, as a model folder (default `<run_dir>/model`).

    Raises ConfigError for a folder that is no run, CheckpointError when the run has no checkpoint.
    """
    config, stage_dir, before, checkpoint = newest_checkpoint(run_dir)
    encoder = build_encoder(config)
    check_exportable(encoder)
    if before is not None:
        take_over(encoder, before)
    learned = build_learned(config, encoder, build_teachers(config))
    load_weights(checkpoint, build_named(config, encoder, learned))
    whiten(config, encoder, list(build_sources(config).values()))
    stage = "" if stage_dir == run_dir else f"stage {stage_dir.name}, "
    record = RunRecord(
        name=f"{config['run']['name']}, {stage}step {checkpoint.step}",
        base_model=str(config["backbone"]["name"]).removeprefix("package://"),
    )
    return export(encoder, folder or run_dir / "model", probes=[], record=record)


def newest_checkpoint(run_dir: Path) -> tuple[dict[str, Any], Path, Path | None, Checkpoint]:
    """(settings and folder of the stage, weights that it started from, its newest checkpoint)."""
    configs = stage_configs(load_saved(run_dir / "config.yaml"))
    folders = [run_dir / "stages" / name if name else run_dir for name in configs]
    befores = [None, *(folder / "weights.safetensors" for folder in folders)]
    for config, folder, before in reversed(list(zip(configs.values(), folders, befores, strict=False))):
        checkpoint = find_checkpoint(folder / "checkpoints")
        if checkpoint is not None:
            return config, folder, before, checkpoint
    raise CheckpointError(
        f"{run_dir.absolute()} has no checkpoint yet. One is written every training.save_every steps, when the run is told "
        "to stop, and at its end."
    )
