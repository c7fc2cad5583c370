"""Small model folders to merge: the same model, with weights moved by a little, as their runs would have exported them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from embedtrain.assemble import build_encoder
from embedtrain.encoder import Encoder
from embedtrain.export.sentence_transformers import write_files
from tests.helpers.runs import tiny_config


def tiny_encoder(folder: Path, *overrides: str, seed: int | None = None, by: float = 0.05) -> Encoder:
    """The encoder of a tiny run; with a seed, every weight moved at random."""
    torch.manual_seed(0)  # heads begin alike
    encoder = build_encoder(tiny_config(folder, *overrides))
    if seed is not None:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += by * torch.randn(parameter.shape, generator=draw)
    return encoder


def write_model(folder: Path, name: str, *overrides: str, seed: int | None = None, **options: Any) -> Path:
    """`folder/name`, a model folder without a card."""
    target = folder / name
    target.mkdir(parents=True)
    encoder = tiny_encoder(folder, *overrides, seed=seed)
    write_files(encoder, target, **{"similarity": "cosine", "dtype": "float32", **options})
    return target
