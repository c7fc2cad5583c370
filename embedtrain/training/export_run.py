"""The model of a run that was stopped, or exported before: its newest checkpoint as a finished, verified folder."""

from __future__ import annotations

import logging
from pathlib import Path

from embedtrain.assemble import build_encoder
from embedtrain.config.build import build
from embedtrain.config.compose import load_saved
from embedtrain.errors import CheckpointError
from embedtrain.export.record import RunRecord
from embedtrain.export.sentence_transformers import ExportReport, check_exportable, export
from embedtrain.training.checkpoint import find_checkpoint, load_weights
from embedtrain.training.optim import named_trainable

log = logging.getLogger("embedtrain")


def export_run(run_dir: Path, folder: Path | None = None) -> ExportReport:
    """Write the newest whole checkpoint of `run_dir` as a model folder (default `<run_dir>/model`).

    Raises ConfigError for a folder that is no run, CheckpointError when the run has no checkpoint.
    """
    config = load_saved(run_dir / "config.yaml")
    checkpoint = find_checkpoint(run_dir / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(
            f"{run_dir.absolute()} has no checkpoint yet. One is written every training.save_every steps, when the run is told "
            "to stop, and at its end."
        )
    encoder, loss = build_encoder(config), build(config["loss"])
    check_exportable(encoder)
    load_weights(checkpoint, named_trainable(encoder, loss))
    record = RunRecord(
        name=f"{config['run']['name']}, step {checkpoint.step}",
        base_model=str(config["backbone"]["name"]).removeprefix("package://"),
    )
    return export(encoder, folder or run_dir / "model", probes=[], record=record)
