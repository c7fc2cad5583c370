"""What may be merged, each as a model folder of one kind.

    a run directory                    its exported model, or its newest checkpoint
    runs/x/checkpoints/step_00000040   a checkpoint, read together with its run
    a model folder, package://, a hub name; a folder of a published layout; a LoRA adapter

Folders of sentence-transformers with safetensors are read where they lie. The others are first written as such a folder, one
after the other; LoRA is added to the weights of its base then, W + scale B A. So adapters are merged by their products:
averages of A and of B by themselves would be no average of anything.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from embedtrain.backbones.locate import locate
from embedtrain.config.compose import load_saved
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.export.folder import ModelFolder, read_model_folder
from embedtrain.export.layout import read_json
from embedtrain.export.load import load_encoder, local_folder
from embedtrain.export.sentence_transformers import write_files
from embedtrain.merging.weights import FolderWeights
from embedtrain.training.export_run import checkpoint_at, encoder_at, newest_checkpoint

log = logging.getLogger("embedtrain")

_CHECKPOINT = ("state.json", "manifest.json", "model.safetensors")


@dataclass(frozen=True)
class Model:
    """One input."""

    name: str  # as it was typed
    weights: FolderWeights
    settings: ModelFolder | None  # None: a backbone alone, which may be a base
    run: Path | None  # the run that it is from

    @property
    def folder(self) -> Path:
        return self.weights.folder


def expanded(names: Sequence[str]) -> list[str]:
    """The names, with `runs/x/checkpoints/step_*` replaced by what is there, in order. Raises ConfigError for none."""
    found: list[str] = []
    for name in names:
        matches = sorted(path for path in glob(name) if Path(path).is_dir()) if any(c in name for c in "*?") else [name]
        if not matches:
            raise ConfigError(f"models: {name} matches no folder.")
        found += matches
    doubled = sorted({name for name in found if found.count(name) > 1})
    if doubled:
        raise ConfigError(f"models: {', '.join(doubled)} twice. Give it a larger weight in its place.")
    return found


def read_model(name: str, scratch: Path) -> Model:
    """The model called `name`. `scratch`: a folder of its own, written where the model has to be written anew.

    Raises ConfigError or CheckpointError where there is none, or one that cannot be merged.
    """
    path = Path(locate(name))
    run = _run_of(path)
    if run is not None:
        _refuse_whitened(name, run)
    if all((path / file).is_file() for file in _CHECKPOINT):
        return _model(name, _write(encoder_at(*checkpoint_at(path)), scratch), run)
    if run is not None and not (path / "model" / "modules.json").is_file() and not (path / "modules.json").is_file():
        config, _, before, checkpoint = newest_checkpoint(run)
        log.info("%s: has no exported model; its newest checkpoint is taken, step %d", name, checkpoint.step)
        return _model(name, _write(encoder_at(config, before, checkpoint), scratch), run)
    folder = local_folder(name)
    return _model(name, folder if _is_plain(folder) else _write(load_encoder(folder), scratch), run)


def read_base(name: str, scratch: Path) -> Model:
    """As `read_model`; a transformers model without a pooling will do, since only weights are asked of a base."""
    path = Path(locate(name))
    if _run_of(path) is None:
        folder = local_folder(name)
        adapted = (folder / "adapter_config.json").is_file()
        if (folder / "config.json").is_file() and not (folder / "modules.json").is_file() and not adapted:
            return Model(name, FolderWeights(folder), None, None)
    return read_model(name, scratch)


def _model(name: str, folder: Path, run: Path | None) -> Model:
    settings = read_model_folder(folder)
    return Model(name, FolderWeights(folder, settings.transformer), settings, run)


def _run_of(path: Path) -> Path | None:
    """The run directory that a path is, or lies in: its model, a checkpoint, or a checkpoint of a stage."""
    inside = [path, path.parent] if path.name == "model" else [path]
    if path.parent.name == "checkpoints":
        inside = [path.parent.parent, path.parent.parent.parent.parent]
    return next((folder for folder in inside if (folder / "config.yaml").is_file()), None)


def _refuse_whitened(name: str, run: Path) -> None:
    whiten_to = load_saved(run / "config.yaml")["export"]["whiten_to"]
    if whiten_to is not None:
        raise ConfigError(
            f"models: {name} was whitened (export.whiten_to={whiten_to}), which turns the space of each model in its own way, so "
            "their weights no longer belong together. Merge runs that were not."
        )


def _is_plain(folder: Path) -> bool:
    """Whether sentence-transformers' own files say all, with weights as safetensors."""
    if not (folder / "modules.json").is_file():
        return False
    places = [folder / step["path"] for step in read_json(folder / "modules.json")] or [folder]
    safe = any((places[0] / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json"))
    adapted = any((place / "adapter_config.json").is_file() for place in (folder, places[0]))
    pickled = any(
        (place / "pytorch_model.bin").is_file() and not (place / "model.safetensors").is_file() for place in places[1:]
    )
    return safe and not adapted and not pickled


def _write(encoder: Encoder, scratch: Path) -> Path:
    """The encoder as a folder, in fp32."""
    scratch.mkdir(parents=True)
    write_files(encoder, scratch, similarity="cosine", dtype="float32")
    return scratch
