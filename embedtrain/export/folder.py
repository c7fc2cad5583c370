"""What a sentence-transformers folder says, in our words. Reads JSON, and of weights only which layers are averaged.

Both the layout of version 6 and that of the versions before are read. What we do not have is refused by name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedtrain.backbones.published.adapter import read_adapter
from embedtrain.errors import CheckpointError
from embedtrain.export import layout
from embedtrain.export.multi_vector import read_multi_vector, read_query_expansion
from embedtrain.export.pooling import MODES
from embedtrain.export.prompts import read_templates
from embedtrain.export.sparse import read_splade
from embedtrain.export.tensors import layers_with_relu, load_layers, load_tensors, map_size

log = logging.getLogger("embedtrain")

_OURS = "embedtrain.pooling."


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolingFolder:
    """The modules between the transformer and the end."""

    name: str  # of `MODES`, or: layer_average latent_attention multi_vector splade bge_m3_sparse trainable projected; heads.py
    options: Mapping[str, Any]  # of the head
    include_prompt: bool = True
    weights: Path | None = None  # folder of the head's own
    state: Callable[[], Mapping[str, Tensor]] | None = None  # reads the head's own, where they lie otherwise
    projection: tuple[Path, ...] = ()  # folders of the linear layers behind the head, in order
    normalize: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """A whole folder."""

    path: Path
    transformer: Path  # folder of the transformers model and its tokenizer
    pooling: PoolingFolder
    bridge: Path | None = None  # folder of what stands between the transformer and the pooling: bridge.py
    views: Mapping[str, PoolingFolder] = field(default_factory=dict)  # further embeddings of each text, by name
    prompts: Mapping[str, str] = field(default_factory=dict)  # all of them, by name
    markers: tuple[str, ...] = ()  # prompts, or their first words, that are one token each
    max_query_length: int | None = None  # tokens; None: as long as model and tokenizer allow
    max_document_length: int | None = None
    query_augmentation: int | None = None  # tokens
    attend_to_masks: bool = True  # whether tokens see the masks of that
    append_eos: bool = False  # texts end in EOS, whatever the pooling reads and the tokenizer does itself
    lower_case: bool = False  # the texts, beyond what the tokenizer does itself
    dim: int | None = None  # the first so many of the embedding (Matryoshka); None: all
    similarity: str = "cosine"
    unsupported: str | None = None  # what our encoder does not do of it; weights of its heads can be had all the same


def read_model_folder(path: str | Path) -> ModelFolder:
    """What the folder holds. Raises CheckpointError naming the file, module or setting that is missing or unknown."""
    path = Path(path)
    steps = [(str(step["type"]), path / step["path"]) for step in layout.read_json(path / "modules.json")]
    model = model_settings(path)
    kind = model.get("model_type", "SentenceTransformer")
    if kind not in layout.KINDS:
        raise CheckpointError(
            f"{path}/config_sentence_transformers.json: model_type is {kind}; known are {', '.join(layout.KINDS)}."
        )
    first = _take(steps, "Transformer")
    if first is None and steps and steps[0][0] == layout.CONTEXTUAL:
        first = steps.pop(0)[1]
    language_model = first is None and kind == "SparseEncoder"  # so called in version 5
    if language_model:
        first = _take(steps, "MLMTransformer")
    if first is None:
        raise CheckpointError(f"{path}/modules.json: expected a Transformer first, got {_names(steps) or 'nothing'}.")
    settings = _transformer_settings(first, kind)
    augmentation, attend_to_masks = read_query_expansion(settings, first / "sentence_bert_config.json")
    bridge = steps.pop(0)[1] if steps and steps[0][0] == layout.BRIDGE else None
    if language_model:
        settings["transformer_task"] = "fill-mask"
    if kind == "MultiVectorEncoder":
        options, linears, normalize = read_multi_vector(steps)
        pooling = PoolingFolder(
            name="multi_vector",
            options=options,
            weights=linears[0] if linears else None,
            projection=tuple(linears[1:]),
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
        bridge=bridge,
        prompts={name: prompt or "" for name, prompt in model.get("prompts", {}).items()} | read_templates(path),
        max_query_length=settings.get("query_length") or settings.get("max_seq_length"),
        max_document_length=settings.get("document_length") or settings.get("max_seq_length"),
        query_augmentation=augmentation,
        attend_to_masks=attend_to_masks,
        append_eos=_appends_eos(first),
        lower_case=bool(settings.get("do_lower_case")),
        dim=model.get("truncate_dim"),
        similarity=model.get("similarity_fn_name") or "cosine",
    )


def _take(steps: list[tuple[str, Path]], name: str) -> Path | None:
    """The folder of the next module if it is a `name` of sentence-transformers, taken off the list."""
    if steps and steps[0][0].startswith("sentence_transformers.") and steps[0][0].rsplit(".", 1)[-1] == name:
        return steps.pop(0)[1]
    return None


def _names(steps: list[tuple[str, Path]]) -> str:
    return ", ".join(kind for kind, _ in steps)


def model_settings(path: Path) -> dict[str, Any]:
    """config_sentence_transformers.json, or nothing; warns of prompts that neither queries nor documents take."""
    file = path / "config_sentence_transformers.json"
    settings = layout.read_json(file) if file.exists() else {}
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
    read_adapter(str(path), {"revision": None})  # refuses what no body can be made of
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
    projection = []
    while (dense := _take(steps, "Dense")) is not None:
        projection.append(dense)
    layers = layers_with_relu(projection)
    if projection and layers is None:
        map_size(projection)
    normalize = _take(steps, "Normalize") is not None
    if steps:
        raise CheckpointError(
            f"{path}/modules.json: {_names(steps)} cannot be read after {name} pooling. Known are Transformer, Pooling "
            "(or a WeightedLayerPooling and Pooling, or latent attention), then any number of Dense, then Normalize."
        )
    if layers is not None:
        if name not in MODES:
            raise CheckpointError(f"{path}: layers with a ReLU between them cannot be read behind {name} pooling.")
        return PoolingFolder(
            name="projected",
            options={**layers, "pooling": name},
            include_prompt=include_prompt,
            state=lambda: load_layers(projection),
            normalize=normalize,
        )
    return PoolingFolder(
        name=name,
        options=options,
        include_prompt=include_prompt,
        weights=weights,
        projection=tuple(projection),
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


def _appends_eos(folder: Path) -> bool:
    """Whether the tokenizer's own settings ask for EOS behind every text; not every class of transformers heeds them."""
    file = folder / "tokenizer_config.json"
    return file.exists() and layout.read_json(file).get("add_eos_token") is True


def dense_of(model: ModelFolder, dim: int) -> ModelFolder:
    """`model` with embeddings of `dim` dimensions: by the Dense of its folder that is made for them, else their first `dim`.

    Stella (arXiv:2412.19048) has a Dense for each of several dimensions, `2_Dense_256`, `2_Dense_1024`, ...; modules.json names
    one. Raises CheckpointError where it has none for `dim`.
    """
    last = model.pooling.projection[-1] if model.pooling.projection else None
    family = re.fullmatch(r"(.*_Dense_)(\d+)", last.name) if last is not None else None
    if last is None or family is None:
        return replace(model, dim=dim)
    others = {
        int(p.name.removeprefix(family[1])): p
        for p in last.parent.glob(f"{family[1]}*")
        if p.name[len(family[1]) :].isdigit()
    }
    if dim not in others:
        raise CheckpointError(
            f"{model.path}: no layer for {dim} dimensions; there are {', '.join(map(str, sorted(others)))}."
        )
    projection = (*model.pooling.projection[:-1], others[dim])
    return replace(model, pooling=replace(model.pooling, projection=projection), dim=None)


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
