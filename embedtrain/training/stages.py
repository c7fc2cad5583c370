"""Stages: each in a folder of its own, each from the weights of the one before.

    runs/x/stages/adapt/       checkpoints/, metrics.jsonl, ... as of a run by itself
        weights.safetensors    what the next stage starts from: the encoder, its adapters merged; written at the end

A stage whose weights are there is done. Any other goes on from its newest checkpoint, or begins.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedtrain import distributed
from embedtrain.backbones.new_tokens import take_rows
from embedtrain.config.stages import stage_configs
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError
from embedtrain.run import Run

log = logging.getLogger("embedtrain")


@dataclass(frozen=True)
class Stage:
    """One stage of a run, or a run of one stage, which has no name."""

    name: str
    number: int
    run: Run  # with the directory and the settings of this stage
    whole: Run
    previous: Stage | None
    is_last: bool

    @property
    def config(self) -> dict[str, Any]:
        return self.run.config

    @property
    def weights(self) -> Path:
        return self.run.dir / "weights.safetensors"

    @property
    def is_done(self) -> bool:
        """As rank 0 sees it. The last stage is done with the run."""
        return not self.is_last and distributed.broadcast_object(self.weights.exists())

    def results(self, when: str) -> Path:
        """Where the evaluation before or after it goes; that around all stages is the run's own."""
        around_all = self.previous is None if when == "before" else self.is_last
        return (self.whole if around_all else self.run).dir / "evaluation" / f"{when}.json"


def stages_of(run: Run) -> list[Stage]:
    """The stages of a started run, in order, with their folders made."""
    stages: list[Stage] = []
    configs = stage_configs(run.config)
    for number, (name, config) in enumerate(configs.items(), 1):
        own = run if not name else replace(run, dir=Path(config["run"]["dir"]), config=config)
        if distributed.is_main():
            own.dir.mkdir(parents=True, exist_ok=True)
            if name and not any((own.dir / "checkpoints").glob("step_*")):
                (own.dir / "metrics.jsonl").unlink(missing_ok=True)  # of a start that never reached a checkpoint
        stages.append(Stage(name, number, own, run, stages[-1] if stages else None, number == len(configs)))
    distributed.barrier()
    return stages


def hand_on(encoder: Encoder, stage: Stage) -> None:
    """Write what the next stage starts from, whole or not at all. Rank 0 alone.

    Raises CheckpointError when it cannot be written.
    """
    partial = stage.weights.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in plain_weights(encoder).items()}
    try:
        save_file(tensors, partial)
        partial.replace(stage.weights)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{stage.weights} could not be written: {error}. Its checkpoints are intact: make room and start the same "
            "command again; it resumes."
        ) from error


def take_over(encoder: Encoder, path: Path) -> None:
    """Put the weights that the stage before handed on, the file `path`, into a new encoder.

    The backbone must be the same model. A head with other names or shapes starts new, and the log says so. Raises
    CheckpointError for weights of another backbone, and for a file that is broken.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is broken ({error}). Remove it; the stage then ends again from its newest checkpoint."
        ) from error
    wanted = _tensors(encoder)
    fits = {name for name, tensor in wanted.items() if name in weights and weights[name].shape == tensor.shape}
    lost = sorted(name for name in weights.keys() | wanted.keys() if name not in fits)
    foreign = [name for name in lost if name.startswith("backbone.")]
    if foreign:
        raise CheckpointError(
            f"{path}: its backbone is not the one of this stage ({', '.join(foreign[:5])} differ). One model goes through "
            "all stages."
        )
    for name in fits:
        wanted[name].detach().copy_(weights[name])
    take_rows(encoder)
    new = sorted(name for name in wanted if name not in fits)
    if lost:
        log.warning(
            "%s: the stage had other heads. New in this one: %s; left behind: %s.",
            *(path, ", ".join(new) or "none", ", ".join(sorted(set(lost) - set(new))) or "none"),
        )


def plain_weights(encoder: Encoder) -> dict[str, Tensor]:
    """Everything an encoder has learned, its adapters added to their layers, under names that adapters do not change."""
    return _heads(encoder) | _distinct("backbone.", encoder.backbone.merged_model())  # type: ignore[operator]


def _tensors(encoder: Encoder) -> dict[str, Tensor]:
    """The live tensors behind the names of `plain_weights`; new adapters, which begin as the identity, are none of them."""
    backbone = _distinct("backbone.", encoder.backbone.hf_model)  # type: ignore[arg-type]
    own = ("lora_", "new_rows")  # what `merged_model` has in other weights
    plain = {n.replace(".base_layer.", "."): t for n, t in backbone.items() if not any(part in n for part in own)}
    return _heads(encoder) | plain


def _heads(encoder: Encoder) -> dict[str, Tensor]:
    """All of an encoder but the model that reads its texts."""
    beside = tuple(f"backbone.{part}." for part in getattr(encoder.backbone, "beside", ()))
    return {
        name: tensor
        for name, tensor in _distinct("", encoder).items()
        if not name.startswith("backbone.") or name.startswith(beside)
    }


def _distinct(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once: tied ones under their first name."""
    found: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        found.setdefault(id(tensor), name)
    return {prefix + name: state[name] for name in found.values()}
