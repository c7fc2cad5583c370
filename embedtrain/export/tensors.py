"""Weights of one module of a model folder: a file of tensors in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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


def save_linear(linear: nn.Linear, folder: Path, dtype: torch.dtype, *, feature: str = "sentence_embedding") -> None:
    """`linear` as a Dense without activation, on the vectors of texts or (`token_embeddings`) of tokens."""
    config = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": layout.IDENTITY,
    }
    if feature != "sentence_embedding":  # a key that versions before 5.4 do not know
        config |= {"module_input_name": feature, "module_output_name": feature}
    layout.write_json(folder / "config.json", config)
    save_tensors({f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}, folder, dtype)


def load_linear(linear: nn.Linear, folder: Path) -> None:
    """A Dense's weights into `linear`; one without bias leaves a bias of 0."""
    weights = load_tensors(folder)
    with torch.no_grad():
        linear.weight.copy_(weights["linear.weight"])
        if linear.bias is not None:
            linear.bias.copy_(weights.get("linear.bias", torch.zeros_like(linear.bias)))


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
    read = config.get("module_input_name", "sentence_embedding")
    if config.get("use_residual") or read != feature or config.get("module_output_name", read) != read:
        raise CheckpointError(
            f"{folder}/config.json: a Dense with a residual, or not on {feature}, cannot be read here."
        )
    return int(config["out_features"]), bool(config.get("bias", True))
