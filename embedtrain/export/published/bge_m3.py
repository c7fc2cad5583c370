"""BGE-M3 (arXiv:2402.03216): a sentence-transformers folder of the dense embedding, and two linear layers beside it.

    sparse_linear.pt     weight [1, H], bias [1]     view `sparse`
    colbert_linear.pt    weight [H, H], bias [H]     view `multi_vector`

The files are pickles, read by torch's restricted reader. sentence-transformers itself gives the dense embedding alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from embedtrain.export.folder import ModelFolder, PoolingFolder, read_model_folder
from embedtrain.export.published.weights import read_pickle, renamed

SPARSE, TOKENS = "sparse_linear.pt", "colbert_linear.pt"
_NAMES = {"weight": "linear.weight", "bias": "linear.bias"}


def read(path: Path) -> ModelFolder | None:
    if not (path / SPARSE).exists() or not (path / TOKENS).exists():
        return None
    dense = read_model_folder(path)
    dim = read_pickle(path / TOKENS)["weight"].shape[0]
    tokens = {"dim": dim, "bias": True, "skip_first": True, "skip_punctuation": False}
    return replace(
        dense,
        views={
            "sparse": PoolingFolder(name="bge_m3_sparse", options={}, state=lambda: _linear(path / SPARSE)),
            "multi_vector": PoolingFolder(name="multi_vector", options=tokens, state=lambda: _linear(path / TOKENS)),
        },
    )


def _linear(file: Path) -> dict[str, Tensor]:
    return renamed(read_pickle(file), _NAMES, str(file))
