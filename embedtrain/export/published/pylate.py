"""ColBERT as PyLate stores it: modules Transformer and Dense on tokens, everything else in config_sentence_transformers.json.

    query_prefix, document_prefix            markers behind CLS; here they are the prompts
    query_length, document_length            tokens
    do_query_expansion                       queries are filled with masks to query_length; true where it is not said
    attend_to_expansion_tokens               whether tokens see the masks
    skiplist_words                           tokens of documents without a vector; ASCII punctuation where it is not said

Several Dense in a row, each with a parallel layer where it has `use_residual`, are one linear map: their product is read.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from embedtrain.errors import CheckpointError
from embedtrain.export import layout
from embedtrain.export.folder import ModelFolder, PoolingFolder, model_settings
from embedtrain.export.tensors import linear_map, map_size

_DENSE = "pylate.models.Dense.Dense"
_TOKENS = "token_embeddings"
_LENGTH = 32


def read(path: Path) -> ModelFolder | None:
    file = path / "modules.json"
    steps = layout.read_json(file) if file.exists() else []
    if not any(step["type"] == _DENSE for step in steps):
        return None
    kinds = [step["type"] for step in steps]
    if not kinds[0].endswith(".Transformer") or any(kind != _DENSE for kind in kinds[1:]):
        raise CheckpointError(f"{file}: expected a Transformer and {_DENSE}, got {', '.join(kinds)}.")
    linears = [path / step["path"] for step in steps[1:]]
    said = model_settings(path)
    dim, bias = map_size(linears, feature=_TOKENS)
    options = {"dim": dim, "bias": bias, "skip_first": False, "skip_punctuation": _skips_punctuation(said, file)}
    length = said.get("query_length") or _LENGTH
    filled = said.get("do_query_expansion") is not False
    prompts = said.get("prompts") or {}
    markers = {role: said.get(f"{role}_prefix") or "" for role in ("query", "document")}
    return ModelFolder(
        path=path,
        transformer=path / steps[0]["path"],
        pooling=PoolingFolder(name="multi_vector", options=options, state=lambda: _head(linears), normalize=True),
        prompts={role: marker + (prompts.get(role) or "").removeprefix(marker) for role, marker in markers.items()},
        markers=tuple(marker for marker in markers.values() if marker),
        max_query_length=length,
        max_document_length=said.get("document_length"),
        query_augmentation=length if filled else None,
        attend_to_masks=not filled or bool(said.get("attend_to_expansion_tokens")),
        similarity="maxsim",
    )


def _skips_punctuation(said: Mapping[str, Any], file: Path) -> bool:
    words = said.get("skiplist_words")
    if words is None or sorted(words) == sorted(string.punctuation):
        return True
    if words:
        raise CheckpointError(
            f"{file.parent}: skiplist_words {words} cannot be read; known are none and ASCII punctuation."
        )
    return False


def _head(linears: list[Path]) -> dict[str, Tensor]:
    weight, bias = linear_map(linears)
    return {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
