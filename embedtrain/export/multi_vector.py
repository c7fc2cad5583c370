"""Token vectors as a MultiVectorEncoder of sentence-transformers, and back.

Transformer                       with query_expansion, where queries are filled with masks
Dense on tokens                   the head's linear layer; a second one for a projection
Normalize on tokens
MultiVectorMask                   leaves the first token out, by its id, of queries and documents
MultiVectorMask                   leaves punctuation out of documents
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.export import layout
from embedtrain.export.tensors import linear_size, save_linear
from embedtrain.pooling.multi_vector import MultiVectorPooling

_TOKENS = "token_embeddings"
_PUNCTUATION = list(string.punctuation)
_BOTH = ["query", "document"]


def check_multi_vector(encoder: Encoder, head: MultiVectorPooling) -> None:
    """Raises ConfigError for what no MultiVectorMask can say."""
    prompts = encoder.tokenizer.prompts
    if not prompts.pool_prompt and any(prompts.templates.values()):
        raise ConfigError(
            "prompts.pool_prompt=false cannot be exported with several vectors per text: sentence-transformers gives the tokens "
            "of a prompt their vectors. Set it to true."
        )
    if head.skip_first and _first_token(encoder) is None:
        raise ConfigError(
            "pooling.skip_first=true cannot be exported: texts of this tokenizer do not begin with a special token, and "
            "sentence-transformers leaves tokens out by their id. Set it to false."
        )


def write_multi_vector(
    encoder: Encoder, head: MultiVectorPooling, folder: Path, dtype: torch.dtype
) -> list[tuple[str, str]]:
    """Write the modules behind the transformer, numbered from 1, and return them as (class, name) for modules.json."""
    written: list[tuple[str, str]] = []

    def place(kind: str, name: str) -> Path:
        written.append((kind, name))
        return folder / f"{len(written)}_{name}"

    for linear in (head.linear, encoder.projection):
        if linear is not None:
            save_linear(linear, place(layout.DENSE, "Dense"), dtype, feature=_TOKENS)
    if encoder.normalize:
        names = {"module_input_name": _TOKENS, "module_output_name": _TOKENS}
        layout.write_json(place(layout.NORMALIZE, "Normalize") / "config.json", names)
    if head.skip_first:
        mask = {"skiplist_words": [_first_token(encoder)], "skiplist_tasks": _BOTH, "keep_only_token_ids": None}
        layout.write_json(place(layout.MASK, "MultiVectorMask") / "config.json", mask)
    words = _PUNCTUATION if head.skip_punctuation else []
    mask = {"skiplist_words": words, "skiplist_tasks": ["document"], "keep_only_token_ids": None}
    layout.write_json(place(layout.MASK, "MultiVectorMask") / "config.json", mask)
    return written


def query_expansion(encoder: Encoder) -> dict[str, Any]:
    """The key of sentence_bert_config.json for queries that are filled with masks; empty where they are not."""
    length, attend = encoder.tokenizer.query_augmentation, encoder.tokenizer.attend_to_masks
    return {} if length is None else {"query_expansion": {"strategy": "min", "attend": attend, "length": length}}


def read_query_expansion(settings: Mapping[str, Any], file: Path) -> tuple[int | None, bool]:
    """Tokens that queries are filled up to, and whether tokens see what fills them.

    Raises CheckpointError for a way of filling that is not ours.
    """
    expansion = settings.get("query_expansion")
    if expansion is None:
        return None, True
    if expansion.get("strategy") != "min" or expansion.get("token") is not None:
        raise CheckpointError(
            f"{file}: query_expansion {expansion} cannot be read; ours fills queries with masks, and cuts none: strategy min, "
            "no token."
        )
    return int(expansion["length"]), bool(expansion.get("attend", False))


def read_multi_vector(steps: list[tuple[str, Path]]) -> tuple[dict[str, Any], list[Path], bool]:
    """(options of the head, folders of the linear layers, whether vectors have length 1) of the modules behind the transformer.

    Raises CheckpointError for modules that we do not have.
    """
    linears = [folder for kind, folder in steps if _is(kind, "Dense")]
    masks = [layout.read_json(folder / "config.json") for kind, folder in steps if _is(kind, "MultiVectorMask")]
    unknown = [
        kind for kind, _ in steps if not any(_is(kind, known) for known in ("Dense", "Normalize", "MultiVectorMask"))
    ]
    if unknown or len(linears) > 2 or not masks:
        raise CheckpointError(
            f"{', '.join(kind for kind, _ in steps) or 'nothing'} behind the transformer of a MultiVectorEncoder cannot be read. "
            "Known are at most two Dense on tokens, Normalize, and one or two MultiVectorMask."
        )
    options: dict[str, Any] = {"dim": None, "skip_first": False, "skip_punctuation": False}
    if linears:
        options["dim"], options["bias"] = linear_size(linears[0], feature=_TOKENS)
    for mask in masks:
        options |= _read_mask(mask)
    return options, linears, any(_is(kind, "Normalize") for kind, _ in steps)


def _read_mask(mask: Mapping[str, Any]) -> dict[str, bool]:
    words, tasks = mask.get("skiplist_words") or [], mask.get("skiplist_tasks") or ["document"]
    if mask.get("keep_only_token_ids") is None:
        if not words:
            return {}
        if sorted(words) == sorted(_PUNCTUATION) and tasks == ["document"]:
            return {"skip_punctuation": True}
        if len(words) == 1 and sorted(tasks) == sorted(_BOTH):
            return {"skip_first": True}
    raise CheckpointError(
        f"a MultiVectorMask that leaves out {words} of {tasks} cannot be read. Known are ASCII punctuation of documents, and one "
        "token, the first, of both."
    )


def _is(kind: str, name: str) -> bool:
    return kind.startswith("sentence_transformers.") and kind.rsplit(".", 1)[-1] == name


def _first_token(encoder: Encoder) -> str | None:
    """The special token that every text begins with."""
    hf = encoder.tokenizer.hf
    first = hf("a")["input_ids"][0]
    return hf.convert_ids_to_tokens(first) if first in hf.all_special_ids else None
