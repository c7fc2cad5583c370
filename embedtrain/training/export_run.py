"""The model of a run that was stopped, or exported before: its newest checkpoint as a finished, verified folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedtrain.assemble import build_encoder, build_sources, build_teachers
from embedtrain.backbones.soft_mask import set_step
from embedtrain.config.compose import load_saved
from embedtrain.config.models import model_name
from embedtrain.config.stages import stage_configs
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError
from embedtrain.export.record import RunRecord
from embedtrain.export.sentence_transformers import ExportReport, check_exportable, export
from embedtrain.training.building import build_learned, build_named
from embedtrain.training.checkpoint import Checkpoint, find_checkpoint, load_weights, read_checkpoint
from embedtrain.training.stages import take_over
from embedtrain.training.texts import read_context, whiten

log = logging.getLogger("embedtrain")


def export_run(run_dir: Path, folder: Path | None = None) -> ExportReport:
    """Write the newest whole checkpoint of `run_dir`, of its last stage begun, as a model folder (default `<run_dir>/model`).

    Raises ConfigError for a folder that is no run, CheckpointError when the run has no checkpoint.
    """
    config, stage_dir, before, checkpoint = newest_checkpoint(run_dir)
    encoder = encoder_at(config, before, checkpoint)
    sources = list(build_sources(config).values())
    read_context(encoder, sources)
    whiten(config, encoder, sources)
    stage = "" if stage_dir == run_dir else f"stage {stage_dir.name}, "
    record = RunRecord(
        name=f"{config['run']['name']}, {stage}step {checkpoint.step}",
        base_model=model_name(config["backbone"]),
    )
    return export(encoder, folder or run_dir / "model", probes=[], record=record)


def encoder_at(config: Mapping[str, Any], before: Path | None, checkpoint: Checkpoint) -> Encoder:
    """The encoder of a stage as it was at a checkpoint. `before`: weights that the stage started from, where there are any."""
    encoder = build_encoder(config)
    check_exportable(encoder)
    if before is not None:
        take_over(encoder, before)
    learned = build_learned(config, encoder, build_teachers(config))
    load_weights(checkpoint, build_named(config, encoder, learned))
    set_step(encoder, checkpoint.step)
    return encoder


def newest_checkpoint(run_dir: Path) -> tuple[dict[str, Any], Path, Path | None, Checkpoint]:
    """(settings and folder of the stage, weights that it started from, its newest checkpoint)."""
    for config, folder, before in reversed(list(_stages(run_dir))):
        checkpoint = find_checkpoint(folder / "checkpoints")
        if checkpoint is not None:
            return config, folder, before, checkpoint
    raise CheckpointError(
        f"{run_dir.absolute()} has no checkpoint yet. One is written every training.save_every steps, when the run is told "
        "to stop, and at its end."
    )


def checkpoint_at(path: Path) -> tuple[dict[str, Any], Path | None, Checkpoint]:
    """(settings of its stage, weights that the stage started from, the checkpoint) of a folder `.../checkpoints/step_*`.

    Raises CheckpointError for one that is damaged, or that belongs to no run.
    """
    path = path.resolve()
    owner = path.parent.parent
    run_dir = owner.parent.parent if owner.parent.name == "stages" else owner
    for config, folder, before in _stages(run_dir) if (run_dir / "config.yaml").is_file() else ():
        if folder == owner:
            return config, before, read_checkpoint(path)
    raise CheckpointError(
        f"{path} belongs to no run: no config.yaml beside its folder `checkpoints` names its stage. A checkpoint has trained "
        "weights alone, and is read together with its run."
    )


def _stages(run_dir: Path) -> Iterator[tuple[dict[str, Any], Path, Path | None]]:
    """(settings, folder, weights that it starts from) of each stage, in order."""
    before = None
    for name, config in stage_configs(load_saved(run_dir / "config.yaml")).items():
        folder = run_dir / "stages" / name if name else run_dir
        yield config, folder, before
        before = folder / "weights.safetensors"
