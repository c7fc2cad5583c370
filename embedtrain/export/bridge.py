"""The second half of a bridge in a model folder: a module behind the encoder, which travels with the model.

config.json model.safetensors tokenizer*.json    the encoder: module 0
bridge/config.json                               its width, and how many learned tokens there are
bridge/model.safetensors                         the connector
bridge/llm/{config.json,model.safetensors}       the language model
modeling_bridge.py                               the module's code
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from embedtrain.backbones.bridge import BridgeBackbone, Connector
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.export import layout
from embedtrain.export.tensors import save_tensors

BRIDGE = "bridge"
LANGUAGE_MODEL = "llm"
BRIDGE_NOTE = (
    f"sentence-transformers has no bridge between two models: the folder ships it as `{layout.BRIDGE_FILE}`, and loading needs "
    "`trust_remote_code=True` and sentence-transformers 3 or newer."
)


def write_connector(connector: Connector, folder: Path, dtype: torch.dtype) -> None:
    """All of `folder`/bridge but the language model, and the module's code."""
    said = {"in_size": connector.inner.in_features, "learned_tokens": connector.num_learned}
    layout.write_json(folder / BRIDGE / "config.json", said)
    save_tensors(connector.state_dict(), folder / BRIDGE, dtype)
    shutil.copyfile(Path(__file__).parent / "modules" / "bridge_st.py", folder / layout.BRIDGE_FILE)


def name_in_folder(name: str) -> str:
    """Where a folder has a weight of `Halves`: `llm.norm.weight` as `bridge/llm/norm.weight`."""
    half, _, own = name.partition(".")
    return {"encoder": "", "connector": f"{BRIDGE}/", "llm": f"{BRIDGE}/{LANGUAGE_MODEL}/"}[half] + own


def read_bridge(encoder: Path, folder: Path, options: Mapping[str, Any]) -> BridgeBackbone:
    """The backbone of a folder. `options`: further arguments of both halves, as of `TransformerBackbone`."""
    return BridgeBackbone(
        encoder=TransformerBackbone(name=str(encoder), **options),
        llm=TransformerBackbone(name=str(folder / LANGUAGE_MODEL), **options),
        learned_tokens=int(layout.read_json(folder / "config.json")["learned_tokens"]),
        connector=str(folder),
    )
