"""Weights of one module of a model folder: a file of tensors in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedtrain.errors import CheckpointError
from embedtrain.export import layout

_NAME = "model.safetensors"


def save_tensors(tensors: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Clones, since safetensors refuses two names of one tensor, as the biases of a language model's head are.
    weights = {name: tensor.detach().to("cpu", dtype).contiguous().clone() for name, tensor in tensors.items()}
    save_file(weights, folder / _NAME, metadata={"format": "pt"})


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """Raises CheckpointError where there is no such file."""
    file = folder / _NAME
    if not file.exists():
        raise CheckpointError(
            f"{file} is missing. Weights in other formats (pytorch_model.bin) are pickles and are not read."
        )
    return load_file(file)


def save_linear(
    linear: nn.Linear,
    folder: Path,
    dtype: torch.dtype,
    *,
    feature: str = "sentence_embedding",
    activation: str = layout.IDENTITY,
) -> None:
    """`linear` and what follows it as a Dense, on the vectors of texts or (`token_embeddings`) of tokens."""
    config = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": activation,
    }
    if feature != "sentence_embedding":  # a key that versions before 5.4 do not know
        config |= {"module_input_name": feature, "module_output_name": feature}
    layout.write_json(folder / "config.json", config)
    save_tensors({f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}, folder, dtype)


def load_map(linear: nn.Linear, folders: Sequence[Path]) -> None:
    """The map of these Dense, its first rows where `linear` has fewer, the identity's where there are none.

    A map without bias leaves a bias of 0. Raises CheckpointError where they do not follow each other, or not on `linear`.
    """
    weight, bias = linear_map(folders) if folders else (torch.eye(linear.in_features), None)
    rows, width = linear.weight.shape
    if weight.shape[0] < rows or weight.shape[1] != width:
        raise CheckpointError(
            f"{_names(folders)}: a layer of {list(weight.shape)}, where {[rows, width]} was expected."
        )
    with torch.no_grad():
        linear.weight.copy_(weight[:rows])
        if linear.bias is not None:
            linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias[:rows])


def linear_map(folders: Sequence[Path]) -> tuple[Tensor, Tensor | None]:
    """(W [out, in], b [out] or None) of Dense in a row, x -> W x + b: without activations they are one. fp32, multiplied in fp64.

    Raises CheckpointError naming keys and shapes that are not those of its config.
    """
    weight: Tensor | None = None
    bias: Tensor | None = None
    for folder in folders:
        own, shift = _dense(folder)
        if weight is not None and own.shape[1] != weight.shape[0]:
            raise CheckpointError(
                f"{_names(folders)}: {folder.name} reads {own.shape[1]} dimensions, after {weight.shape[0]}."
            )
        bias = own @ bias if bias is not None else None
        if shift is not None:
            bias = shift if bias is None else bias + shift
        weight = own if weight is None else own @ weight
    assert weight is not None
    return weight.float(), None if bias is None else bias.float()


def _dense(folder: Path) -> tuple[Tensor, Tensor | None]:
    """(W, b) of one Dense in fp64; with `use_residual` also what runs beside it."""
    config, found = layout.read_json(folder / "config.json"), load_tensors(folder)
    shape = [config["out_features"], config["in_features"]]
    expected = {"linear.weight": shape} | ({"linear.bias": shape[:1]} if config.get("bias", True) else {})
    beside = bool(config.get("use_residual"))
    if beside and shape[0] != shape[1]:
        expected["residual.weight"] = shape
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    if shapes != expected:
        raise CheckpointError(f"{folder / _NAME}: expected {expected}, as its config.json says, got {shapes}.")
    weights = {name: tensor.double() for name, tensor in found.items()}
    weight = weights["linear.weight"]
    if beside:
        weight = weight + weights.get("residual.weight", torch.eye(shape[0], dtype=torch.float64, device="cpu"))
    return weight, weights.get("linear.bias")


def map_size(folders: Sequence[Path], *, feature: str = "sentence_embedding") -> tuple[int, bool]:
    """(dimensions, whether it has a bias) of Dense in a row. Raises CheckpointError as `linear_size`."""
    sizes = [linear_size(folder, feature=feature) for folder in folders]
    return sizes[-1][0], any(bias for _, bias in sizes)


def layers_with_relu(folders: Sequence[Path]) -> dict[str, Any] | None:
    """Options of the layers behind a head, where a ReLU follows each of these Dense but the last; None where none does.

    Raises CheckpointError where one follows some of them.
    """
    configs = [layout.read_json(folder / "config.json") for folder in folders]
    followed = [config.get("activation_function") == layout.RELU for config in configs]
    if not any(followed):
        return None
    biased = {bool(config.get("bias", True)) for config in configs}
    if (
        followed != [True] * (len(folders) - 1) + [False]
        or len(biased) > 1
        or any(c.get("use_residual") for c in configs)
    ):
        raise CheckpointError(
            f"{_names(folders)}: can be read with a ReLU between all of them, and a bias in all or in none."
        )
    return {"sizes": [int(config["out_features"]) for config in configs], "bias": biased.pop(), "activation": "relu"}


def load_layers(folders: Sequence[Path]) -> dict[str, Tensor]:
    """Weights of Dense in a row, as those of the layers of a head."""
    found: dict[str, Tensor] = {}
    for number, folder in enumerate(folders):
        weight, bias = _dense(folder)
        found[f"layers.{number}.weight"] = weight.float()
        if bias is not None:
            found[f"layers.{number}.bias"] = bias.float()
    return found


def _names(folders: Sequence[Path]) -> str:
    return " + ".join(map(str, folders)) or "the identity"


def linear_size(folder: Path, *, feature: str = "sentence_embedding") -> tuple[int, bool]:
    """(dimensions, whether it has a bias) of a Dense.

    Raises CheckpointError for one that is not linear, or not on `feature`.
    """
    config = layout.read_json(folder / "config.json")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation != layout.IDENTITY:
        raise CheckpointError(
            f"{folder}/config.json: a Dense with {activation} cannot be read; a projection here is linear."
        )
    read = config.get("module_input_name", feature)
    if read != feature or (config.get("module_output_name") or read) != read:
        raise CheckpointError(
            f"{folder}/config.json: a Dense on {read} cannot be read here, where {feature} is expected."
        )
    return int(config["out_features"]), bool(config.get("bias", True))
