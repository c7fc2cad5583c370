"""Checkpoints: all that a run needs to go on exactly, or nothing.

    checkpoints/step_00000040/
        model.safetensors       trainable weights of encoder and loss (a frozen base is not copied; it is loaded by name)
        optimizer.safetensors   AdamW's state, by parameter name, and what a loss remembers (its buffers)
        state.json              step, best metric, callbacks, data fingerprint, the resolved config's digest
        manifest.json           size and hash of each file; written last

No random state is stored: batches and dropout are functions of (seed, step, ...). Nothing is pickled. A checkpoint is written
beside its final place, flushed, and then renamed, so a crash or a full disk leaves the earlier ones untouched and
never half a new one under a good name.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from embedtrain import distributed
from embedtrain.errors import CheckpointError
from embedtrain.sharding import gathered, like, put
from embedtrain.tensor_file import TensorFile, write_tensors

log = logging.getLogger("embedtrain")

_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class Checkpoint:
    """One complete, verified checkpoint on disk."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save_checkpoint(
    folder: Path,
    *,
    named: Iterable[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    buffers: Iterable[tuple[str, Tensor]] = (),
) -> Path:
    """Write `folder/step_XXXXXXXX`, then drop all but the newest `keep`. Every rank calls it; rank 0 writes, a tensor at a time.

    Raises CheckpointError, on rank 0, when it cannot be written; earlier checkpoints are untouched.
    """
    target = folder / f"step_{state['step']:08d}"
    named = list(named)
    weights = dict(named)
    moments = _optimizer_tensors(named, optimizer) | dict(buffers)
    with gathered([*weights.values(), *moments.values()]) as tensors:
        if distributed.is_main():
            _write(target, weights, moments, tensors, state)
            for old in _candidates(folder)[:-keep] if keep > 0 else []:
                shutil.rmtree(old, ignore_errors=True)
    return target


def _write(
    target: Path,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    tensors: Iterator[Tensor],
    state: Mapping[str, Any],
) -> None:
    """Rank 0's part. `tensors`: those of `weights` and `moments`, whole, in that order."""
    folder, partial = target.parent, target.with_suffix(".partial")
    needed = sum(t.numel() * t.element_size() for t in [*weights.values(), *moments.values()])
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, part in (("model", weights), ("optimizer", moments)):
            with (partial / f"{name}.safetensors").open("wb") as file:
                headers = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in part.items()}
                write_tensors(file, headers, islice(tensors, len(part)))
        _write_json(partial / "state.json", state)
        _write_json(partial / "manifest.json", {name: _fingerprint(partial / name) for name in _FILES})
        _flush(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        full = error.errno == errno.ENOSPC or free < needed
        why = f"the disk is full: {_gb(needed)} needed, {_gb(free)} free" if full else f"{error}"
        have = [path.name for path in _candidates(folder)]
        raise CheckpointError(
            f"checkpoint {target} could not be written: {why}. Intact checkpoints: {', '.join(have) or 'none'}. Free some space "
            "(or lower training.keep_checkpoints, or move run.dir) and start the same command again; it resumes."
        ) from error


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole. Damaged ones are named in the log and passed over, never used in part.

    Raises CheckpointError when there are checkpoints and none of them is whole.
    """
    candidates = _candidates(folder)
    damaged = []
    for path in reversed(candidates):
        problem = _problem(path)
        if problem is None:
            return Checkpoint(path, json.loads((path / "state.json").read_text(encoding="utf-8")))
        damaged.append(f"{path.name}: {problem}")
        log.warning("checkpoint %s is damaged (%s): trying the one before", path, problem)
    if damaged:
        raise CheckpointError(
            f"{folder}: no checkpoint is whole ({'; '.join(damaged)}). Restore one from a copy, or start again in a new "
            "directory with run.name=<other> (run.resume=never refuses to touch this one)."
        )
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in this folder. Raises CheckpointError where it is not whole."""
    problem = _problem(path)
    if problem is not None:
        raise CheckpointError(f"checkpoint {path} is damaged ({problem}). Name another one of its run.")
    return Checkpoint(path, json.loads((path / "state.json").read_text(encoding="utf-8")))


def load_weights(checkpoint: Checkpoint, named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Its trainable weights, bit for bit, into the live parameters.

    Raises CheckpointError when its tensors are not those of this model.
    """
    named = list(named)
    weights = TensorFile(checkpoint.path / "model.safetensors")
    expected = {name: tuple(parameter.shape) for name, parameter in named}
    found = {name: weights.header(name)[0] for name in weights}
    if expected != found:
        wrong = "; ".join(
            f"{name}: {found.get(name, 'missing')} there, {expected.get(name, 'missing')} here"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        )
        raise CheckpointError(
            f"{checkpoint.path}: its {len(found)} tensors are not the {len(expected)} trainable parameters of this model "
            f"({wrong[:300]}). Resume with the backbone, LoRA and pooling it was trained with."
        )
    for name, parameter in named:
        put(parameter, weights[name])


def load_checkpoint(
    checkpoint: Checkpoint,
    *,
    named: Iterable[tuple[str, nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    buffers: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Weights, optimizer state and buffers of `checkpoint`, bit for bit, into the live objects.

    Raises as `load_weights`; CheckpointError also where a buffer is missing or has another shape.
    """
    named = list(named)
    load_weights(checkpoint, named)
    moments = TensorFile(checkpoint.path / "optimizer.safetensors")
    for name, parameter in named:
        entry: dict[str, Tensor] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = moments.get(f"{name}/{key}")
            if value is not None:
                entry[key] = value.to(parameter.device) if key == "step" else like(parameter, value)
        if entry:
            optimizer.state[parameter] = entry
    for name, buffer in buffers:
        found = moments.header(name)[0] if name in moments else "missing"
        if found != tuple(buffer.shape):
            raise CheckpointError(
                f"{checkpoint.path}: {name} is {found} there, {tuple(buffer.shape)} here. Resume with the same loss."
            )
        buffer.copy_(moments[name])


def _optimizer_tensors(named: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value for name, parameter in named for key, value in optimizer.state.get(parameter, {}).items()
    }


def _candidates(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if path.is_dir() and path.suffix != ".partial")


def _problem(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "manifest.json is missing or cut short"
    for name in _FILES:
        if not (path / name).exists():
            return f"{name} is missing"
        expected, found = manifest.get(name), _fingerprint(path / name)
        if expected != found:
            size = (expected or {}).get("bytes")
            return f"{name} is not as it was written ({found['bytes']} bytes, {size} expected)"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(folder: Path) -> None:
    """Make sure the bytes are on the disk before the rename says that they are."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
