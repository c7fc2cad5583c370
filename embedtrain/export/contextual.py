"""Two encoders in a folder, of which the second reads vectors of other documents in front of each text (arXiv:2410.02525).

config.json model.safetensors ...    the second encoder, at the root like any other
context_encoder/                     the first one, which makes a vector of a document
context_layers/                      the layers around both; context.safetensors: the vectors of a context, if one was set
context_config.json                  how many documents, and where positions begin
modeling_contextual.py               what sentence-transformers lacks: modules/contextual_st.py
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from embedtrain.backbones.contextual import FIRST_ENCODER, ContextualBackbone
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.export import layout
from embedtrain.export.published.weights import fill
from embedtrain.export.tensors import load_tensors, save_tensors
from embedtrain.pooling.learned_tokens import LearnedTokensPooling

CONTEXT_LAYERS = "context_layers"
_CONFIG, _VECTORS = "context_config.json", "context.safetensors"
_SETTINGS = ("num_context", "num_prompts", "null_share")


def check_contextual(encoder: Encoder) -> None:
    """Raises ConfigError where texts are read behind a context and the folder of the head's kind cannot say so."""
    if not encoder.num_context:
        return
    head = encoder.pooling
    reads_more = any(getattr(head, name, False) for name in ("needs_layers", "multi_vector", "needs_router"))
    if reads_more or getattr(head, "lm_head", None) is not None or isinstance(head, LearnedTokensPooling):
        raise ConfigError(
            f"pooling: {type(head).__name__} cannot be exported with a contextual backbone. Use one that makes one vector of "
            "the last states, such as mean."
        )


def is_contextual(folder: Path) -> bool:
    return (folder / _CONFIG).is_file()


def write_context(encoder: Encoder, folder: Path) -> None:
    """All but the two models, and the code."""
    backbone: Any = encoder.backbone
    settings = {name: getattr(backbone, name) for name in _SETTINGS}
    settings |= {"first_position": backbone.first_position, "text_at": backbone.text_at}
    settings |= {"document_prompt": encoder.tokenizer.prompts.exported().get("document", "")}
    layout.write_json(folder / _CONFIG, settings)
    save_tensors(backbone.context_layers.state_dict(), folder / CONTEXT_LAYERS, torch.float32)
    if backbone.context is not None:
        vectors = backbone.context.detach().to("cpu", torch.float32).contiguous()
        save_file({"context": vectors}, folder / CONTEXT_LAYERS / _VECTORS, metadata={"format": "pt"})
    shutil.copyfile(Path(__file__).parent / "modules" / "contextual_st.py", folder / layout.CONTEXTUAL_FILE)


def load_backbone(folder: Path, options: Mapping[str, Any]) -> TransformerBackbone:
    """The backbone of a model folder: two encoders where it holds two. `options`: of `TransformerBackbone`."""
    if not is_contextual(folder):
        return TransformerBackbone(name=str(folder), **options)
    settings = layout.read_json(folder / _CONFIG)
    backbone = ContextualBackbone(name=str(folder), **{name: settings[name] for name in _SETTINGS}, **options)
    if backbone.weights == "pretrained":
        take_context(backbone, folder)
    return backbone


def take_context(backbone: ContextualBackbone, folder: Path) -> None:
    """The layers around both encoders, and the context, out of the folder. Raises CheckpointError for those of other sizes."""
    if not (folder / FIRST_ENCODER).is_dir():
        raise CheckpointError(f"{folder}: {FIRST_ENCODER}/ is missing. The folder is not complete.")
    place = folder / CONTEXT_LAYERS
    fill(backbone.context_layers, load_tensors(place), str(place))
    vectors = place / _VECTORS
    backbone.context = load_file(vectors)["context"].to(backbone.device) if vectors.is_file() else None
