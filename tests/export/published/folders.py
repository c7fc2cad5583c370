"""Synthetic checkpoints with the published names of keys: tiny, random, and written without any of our code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from tests.helpers.models import tiny_model_dir


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def random_tensors(shapes: dict[str, tuple[int, ...]], *, seed: int = 0, scale: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_weights(tensors: dict[str, Tensor], folder: Path, name: str = "model.safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})


def copy_tokenizer(source: str | Path, folder: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(source) / file, folder / file)


def tiny_body(architecture: str, tmp_path: Path, **config: Any) -> tuple[Path, PreTrainedModel]:
    """A folder of transformers itself, and its model."""
    source = Path(tiny_model_dir(architecture, tmp_path / "source", **config))
    return source, AutoModel.from_pretrained(source).eval()
