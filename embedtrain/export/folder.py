"""What a sentence-transformers folder says, in our words. Reads JSON, and of weights only which layers are averaged.

Both the layout of version 6 and that of the versions before are read. What we do not have is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from embedtrain.errors import CheckpointError
from embedtrain.export import layout
from embedtrain.export.multi_vector import read_multi_vector, read_query_expansion
from embedtrain.export.pooling import MODES
from embedtrain.export.sparse import read_splade
from embedtrain.export.tensors import linear_size, load_tensors

log = logging.getLogger("embedtrain")

_OURS = "embedtrain.pooling."


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolingFolder:
    """The modules between the transformer and the end."""

    name: str  # of `MODES`, or: layer_average latent_attention multi_vector splade; ours: see heads.py
    options: Mapping[str, Any]  # of the head
    include_prompt: bool = True
    weights: Path | None = None  # folder of the head's own
    projection: Path | None = None  # folder of the linear layer behind the head
    normalize: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """A whole folder."""

    path: Path
    transformer: Path  # folder of the transformers model and its tokenizer
    pooling: PoolingFolder
    prompts: Mapping[str, str]  # all of them, by name
    max_query_length: int | None  # tokens; None: as long as model and tokenizer allow
    max_document_length: int | None
    query_augmentation: int | None  # tokens
    lower_case: bool  # the texts, beyond what the tokenizer does itself
    similarity: str


def read_model_folder(path: str | Path) -> ModelFolder:
    """What the folder holds. Raises CheckpointError naming the file, module or setting that is missing or unknown."""
    path = Path(path)
    steps = [(str(step["type"]), path / step["path"]) for step in layout.read_json(path / "modules.json")]
    model = _model_settings(path)
    kind = model.get("model_type", "SentenceTransformer")
    first = _take(steps, "Transformer")
    if first is None:
        raise CheckpointError(f"{path}/modules.json: expected a Transformer first, got {_names(steps) or 'nothing'}.")
    settings = _transformer_settings(first, kind)
    if kind == "MultiVectorEncoder":
        options, linears, normalize = read_multi_vector(steps)
        pooling = PoolingFolder(
            name="multi_vector",
            options=options,
            weights=linears[0] if linears else None,
            projection=linears[1] if len(linears) > 1 else None,
            normalize=normalize,
        )
    elif kind == "SparseEncoder":
        pooling = PoolingFolder(name="splade", options=read_splade(steps, settings))
    else:
        pooling = _read_dense(path, steps)
    return ModelFolder(
        path=path,
        transformer=first,
        pooling=pooling,
        prompts={name: prompt or "" for name, prompt in model.get("prompts", {}).items()},
        max_query_length=settings.get("query_length") or settings.get("max_seq_length"),
        max_document_length=settings.get("document_length") or settings.get("max_seq_length"),
        query_augmentation=read_query_expansion(settings, first / "sentence_bert_config.json"),
        lower_case=bool(settings.get("do_lower_case")),
        similarity=model.get("similarity_fn_name") or "cosine",
    )


def _take(steps: list[tuple[str, Path]], name: str) -> Path | None:
    """The folder of the next module if it is a `name` of sentence-transformers, taken off the list."""
    if steps and steps[0][0].startswith("sentence_transformers.") and steps[0][0].rsplit(".", 1)[-1] == name:
        return steps.pop(0)[1]
    return None


def _names(steps: list[tuple[str, Path]]) -> str:
    return ", ".join(kind for kind, _ in steps)


def _model_settings(path: Path) -> dict[str, Any]:
    file = path / "config_sentence_transformers.json"
    settings = layout.read_json(file) if file.exists() else {}
    kind = settings.get("model_type", "SentenceTransformer")
    if kind not in layout.KINDS:
        raise CheckpointError(f"{file}: model_type is {kind}; known are {', '.join(layout.KINDS)}.")
    if settings.get("truncate_dim") is not None:
        raise CheckpointError(
            f"{file}: truncate_dim is {settings['truncate_dim']}; set it to null and cut the embeddings yourself."
        )
    prompts = settings.get("prompts", {})
    default = settings.get("default_prompt_name")
    unused = [
        name
        for name in prompts
        if prompts[name] and name in ("passage", "corpus", default) and name not in ("query", "document")
    ]
    if unused:
        log.warning(
            "%s: prompts %s are not put before queries or documents, which take `query` and `document`. "
            "Set prompts.query and prompts.document if they should be.",
            *(file, ", ".join(unused)),
        )
    return settings


def _transformer_settings(path: Path, kind: str) -> dict[str, Any]:
    if (path / "adapter_config.json").exists():
        raise CheckpointError(
            f"{path} holds an adapter without its base model. Merge the adapter first, or name the base model."
        )
    file = path / "sentence_bert_config.json"
    settings = layout.read_json(file) if file.exists() else {}
    task = settings.get("transformer_task", "feature-extraction")
    states = {"method": "forward", "method_output_name": "last_hidden_state"}
    text = settings.get("modality_config", {}).get("text", states)
    if kind != "SparseEncoder" and (task != "feature-extraction" or text != states):
        raise CheckpointError(
            f"{file}: only the last hidden states of a feature-extraction model can be read, not {task} {text}."
        )
    return settings


def _read_dense(path: Path, steps: list[tuple[str, Path]]) -> PoolingFolder:
    """One vector per text; takes the modules off the list."""
    name, options, weights, include_prompt = _read_pooling(path, steps)
    projection = _take(steps, "Dense")
    if projection is not None:
        linear_size(projection)
    normalize = _take(steps, "Normalize") is not None
    if steps:
        raise CheckpointError(
            f"{path}/modules.json: {_names(steps)} cannot be read after {name} pooling. Known are Transformer, Pooling "
            "(or a WeightedLayerPooling and Pooling, or latent attention), then at most one Dense, then Normalize."
        )
    return PoolingFolder(
        name=name,
        options=options,
        include_prompt=include_prompt,
        weights=weights,
        projection=projection,
        normalize=normalize,
    )


def _read_pooling(path: Path, steps: list[tuple[str, Path]]) -> tuple[str, dict[str, Any], Path | None, bool]:
    """(name, options, folder of its weights, whether prompts are pooled); takes the modules off the list."""
    if steps and steps[0][0] == layout.LATENT_ATTENTION:
        folder = steps.pop(0)[1]
        options = layout.read_json(folder / "config.json")
        return "latent_attention", options, folder, bool(options.pop("include_prompt"))
    if steps and steps[0][0].startswith(_OURS):
        kind, folder = steps.pop(0)
        return kind, {}, None, bool(layout.read_json(folder / "config.json")["include_prompt"])
    layers = _take(steps, "WeightedLayerPooling")
    pooling = _take(steps, "Pooling")
    if pooling is None:
        raise CheckpointError(
            f"{path}/modules.json: expected a Pooling after the Transformer, got {_names(steps) or 'nothing'}."
        )
    config = layout.read_json(pooling / "config.json")
    modes = layout.pooling_modes(config)
    if len(modes) != 1 or modes[0] not in MODES:
        raise CheckpointError(
            f"{pooling}/config.json: pooling {' + '.join(modes)} cannot be read. Known: {', '.join(MODES)}, one at a time."
        )
    include_prompt = bool(config.get("include_prompt", True))
    if modes[0] == "cls" and not include_prompt:
        raise CheckpointError(
            f"{pooling}/config.json: cls with include_prompt false reads the token behind the prompt; ours the first."
        )
    if layers is not None:
        return "layer_average", {"layers": _averaged_layers(layers), "pooling": modes[0]}, None, include_prompt
    return modes[0], {}, None, include_prompt


def _averaged_layers(folder: Path) -> list[int]:
    start = layout.read_json(folder / "config.json").get("layer_start", 4)
    weights = torch.cat([torch.zeros(start), load_tensors(folder)["layer_weights"].float()])
    chosen = torch.nonzero(weights).flatten()
    if not chosen.numel() or not bool((weights[chosen] == weights[chosen[0]]).all()):
        raise CheckpointError(
            f"{folder}: WeightedLayerPooling can be read as a plain average of some layers only, not with weights "
            f"{weights.tolist()}."
        )
    return chosen.tolist()
