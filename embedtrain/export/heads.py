"""Heads that sentence-transformers has no module for, in files that embedtrain reads: `embedtrain/` in the folder.

embedtrain/heads.json          the pooling, where it is one of these, and every view: class and options
embedtrain/<place>/model.safetensors    weights of each that has some; the place is `pooling` or `views.<name>`
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedtrain.backbones.bridge import BridgeBackbone
from embedtrain.backbones.facts import head_facts
from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError
from embedtrain.export import layout
from embedtrain.export.tensors import load_tensors, save_tensors
from embedtrain.pooling.bge_m3_sparse import BgeM3SparsePooling
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.gaussian import GaussianPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.pooling.layer_average import LayerAveragePooling
from embedtrain.pooling.learned_tokens import LearnedTokensPooling
from embedtrain.pooling.max import MaxPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.moe_router import MoeRouterPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.pooling.projected import ProjectedPooling
from embedtrain.pooling.splade import SpladePooling
from embedtrain.pooling.trainable import TrainablePooling
from embedtrain.pooling.weighted_mean import WeightedMeanPooling

# By the name that is written. No other class of a folder is ever built.
HEADS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        BgeM3SparsePooling,
        ClsPooling,
        EosPooling,
        FirstLastPooling,
        GaussianPooling,
        LatentAttentionPooling,
        LayerAveragePooling,
        LearnedTokensPooling,
        MaxPooling,
        MeanPooling,
        MoeRouterPooling,
        MultiVectorPooling,
        ProjectedPooling,
        SpladePooling,
        TrainablePooling,
        WeightedMeanPooling,
    )
}
FOLDER = "embedtrain"
_FILE = "heads.json"
_POOLING = "pooling"
# What the program supplies from backbone and tokenizer, and no file needs to say.
_SUPPLIED = frozenset(
    {"hidden_size", "num_layers", "num_routes", "vocab_size", "special_ids", "punctuation_ids", "lm_head"}
)


def write_heads(encoder: Encoder, folder: Path, dtype: torch.dtype, *, with_pooling: bool) -> None:
    """The views, and the pooling where it is ours alone; nothing at all where there is neither."""
    heads = dict(_heads(encoder, with_pooling))
    if not heads:
        return
    for place, head in heads.items():
        weights = head.state_dict()
        if weights:
            save_tensors(weights, folder / FOLDER / place, dtype)
    layout.write_json(folder / FOLDER / _FILE, {place: _described(head) for place, head in heads.items()})


def read_heads(
    folder: Path, backbone: TransformerBackbone | BridgeBackbone, tokenizer: Any
) -> tuple[nn.Module | None, dict[str, nn.Module]]:
    """(the pooling where it is one of these, the views by name). Raises CheckpointError for a head that we do not have."""
    file = folder / FOLDER / _FILE
    heads: dict[str, nn.Module] = {}
    for place, described in (layout.read_json(file) if file.exists() else {}).items():
        heads[place] = _built(described, backbone, tokenizer, file)
        if heads[place].state_dict():
            heads[place].load_state_dict(load_tensors(folder / FOLDER / place))
    return heads.pop(_POOLING, None), {place.removeprefix("views."): head for place, head in heads.items()}


def _heads(encoder: Encoder, with_pooling: bool) -> Iterator[tuple[str, nn.Module]]:
    if with_pooling:
        yield _POOLING, encoder.pooling
    for name, head in encoder.views.items():
        yield f"views.{name}", head


def _described(head: nn.Module) -> dict[str, Any]:
    """Class and options; a head keeps each of its options under the option's name."""
    options = {name: getattr(head, name) for name in _parameters(type(head)) if name not in _SUPPLIED}
    return {
        "head": type(head).__name__,
        "options": {name: _described(x) if isinstance(x, nn.Module) else x for name, x in options.items()},
    }


def _built(
    described: dict[str, Any], backbone: TransformerBackbone | BridgeBackbone, tokenizer: Any, file: Path
) -> nn.Module:
    kind = HEADS.get(described["head"])
    if kind is None:
        raise CheckpointError(
            f"{file}: {described['head']} is no head of this version. Known: {', '.join(sorted(HEADS))}."
        )
    options = {
        name: _built(x, backbone, tokenizer, file) if isinstance(x, dict) and "head" in x else x
        for name, x in described["options"].items()
    }
    wanted = _parameters(kind)
    options |= {name: x for name, x in head_facts(backbone, tokenizer).items() if name in wanted}
    if isinstance(backbone, BridgeBackbone):
        backbone.refuse_head(kind.__name__, wanted)
    elif "lm_head" in wanted:
        options["lm_head"] = LanguageModelHead(backbone)
    return kind(**options)


def _parameters(kind: type[nn.Module]) -> list[str]:
    return [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
