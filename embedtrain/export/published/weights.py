"""Weights of heads out of published files: by their published names, and checked to the last key."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from embedtrain.backbones.published.body import keys_of
from embedtrain.errors import CheckpointError

_INDEX, _WHOLE, _PICKLE = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a .pt or .bin file by torch's restricted reader, which builds tensors and runs nothing.

    Raises CheckpointError where it holds anything else.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{file} holds more than tensors, or is damaged, and is not read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"{file}: expected tensors by name.")
    return dict(found)


def read_weights(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with `prefix`, which is taken off; the others are not read.

    Raises CheckpointError where the folder has no weights.
    """
    if (folder / _INDEX).exists():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({file for name, file in index.items() if name.startswith(prefix)})
    elif (folder / _WHOLE).exists():
        files = [_WHOLE]
    elif (folder / _PICKLE).exists():
        found = read_pickle(folder / _PICKLE)
        return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    else:
        raise CheckpointError(f"{folder}: no weights here; expected {_WHOLE}, {_INDEX} or {_PICKLE}.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(folder / file, "pt") as opened:
            names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            tensors |= {name.removeprefix(prefix): opened.get_tensor(name) for name in names}
    return tensors


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """`tensors` under our names; `names` is published -> ours. Raises CheckpointError naming keys that lack or are too many."""
    unexpected, missing = sorted(tensors.keys() - names.keys()), sorted(names.keys() - tensors.keys())
    if unexpected or missing:
        raise CheckpointError(f"{where}: not the published keys. {keys_of(missing=missing, unexpected=unexpected)}")
    return {names[name]: tensor for name, tensor in tensors.items()}


def fill(head: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """`tensors` as the weights of `head`. Raises CheckpointError naming keys that lack or are too many, and shapes."""
    own = head.state_dict()
    unexpected, missing = sorted(tensors.keys() - own.keys()), sorted(own.keys() - tensors.keys())
    shapes = [
        f"{name} {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if tensors[name].shape != own[name].shape
    ]
    if unexpected or missing or shapes:
        keys = keys_of(missing=missing, unexpected=unexpected, shapes=shapes)
        raise CheckpointError(f"{where} does not fit {type(head).__name__} as it is set. {keys}")
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
