"""ColBERT's own checkpoints (arXiv:2004.12832, arXiv:2112.01488): architecture `HF_ColBERT`, `linear.weight` beside the body.

    config.json          architectures: [HF_ColBERT]; else the body's
    artifact.metadata    dim, query_maxlen, doc_maxlen, query_token_id, doc_token_id, mask_punctuation, attend_to_mask_tokens

A marker token stands behind CLS: `[unused0]` in queries, `[unused1]` in documents; here it is the prompt. Queries are filled
with masks to query_maxlen and cut there. Unless `attend_to_mask_tokens`, no token sees the masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from embedtrain.backbones.published.colbert import ARCHITECTURE, HEAD
from embedtrain.export import layout
from embedtrain.export.folder import ModelFolder, PoolingFolder
from embedtrain.export.published.weights import read_weights, renamed

# Where artifact.metadata is silent: defaults of ColBERT's settings.
_DEFAULTS: dict[str, Any] = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 32,
    "doc_maxlen": 220,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
    "dim": 128,
}


def read(path: Path) -> ModelFolder | None:
    file = path / "config.json"
    raw = layout.read_json(file) if file.exists() else {}
    if raw.get("architectures") != [ARCHITECTURE]:
        return None
    metadata = path / "artifact.metadata"
    written: dict[str, Any] = layout.read_json(metadata) if metadata.exists() else {}
    said = _DEFAULTS | {name: value for name, value in written.items() if value is not None and name in _DEFAULTS}
    length = said["query_maxlen"]
    return ModelFolder(
        path=path,
        transformer=path,
        pooling=PoolingFolder(
            name="multi_vector",
            options={
                "dim": said["dim"],
                "bias": False,
                "skip_first": False,
                "skip_punctuation": bool(said["mask_punctuation"]),
            },
            state=lambda: _head(path),
            normalize=True,
        ),
        prompts={"query": f"{said['query_token_id']} ", "document": f"{said['doc_token_id']} "},
        markers=(said["query_token_id"], said["doc_token_id"]),
        max_query_length=length,
        max_document_length=said["doc_maxlen"],
        query_augmentation=length,
        attend_to_masks=bool(said["attend_to_mask_tokens"]),
        similarity="maxsim",
    )


def _head(path: Path) -> dict[str, Tensor]:
    return renamed(read_weights(path, HEAD), {"weight": "linear.weight"}, f"{path}: {HEAD}*")
