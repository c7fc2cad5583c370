"""Pooling and Attention (arXiv:2409.02727): a LoRA adapter of peft, and `attn_pool.pt` with the trainable pooling beside it.

The folder does not say which of the five models of the paper it is: whether attention is bidirectional, and whether layers are
read by their mean (the bidirectional model of several layers, which is ours) or by their last token (the causal one). A run
says it:

    backbone.name=<folder> backbone.attention=bidirectional pooling=multi_layer
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from embedtrain.export.folder import ModelFolder, PoolingFolder
from embedtrain.export.published.nv_embed import NAMES as _SAME_BLOCKS
from embedtrain.export.published.weights import read_pickle, renamed

_FILE = "attn_pool.pt"
# The blocks are called as in NV-Embed; the roles of tokens and latents are the other way around.
_LAYERS = {"pos_emb.weight": "layer_embedding"}
NAMES = {theirs: ours.replace("token_norm", "state_norm") for theirs, ours in _SAME_BLOCKS.items()}


def read(path: Path) -> ModelFolder | None:
    if not (path / _FILE).exists() or not (path / "adapter_config.json").exists():
        return None
    return ModelFolder(
        path=path,
        transformer=path,
        pooling=PoolingFolder(name="trainable", options={}, state=lambda: _head(path / _FILE), normalize=True),
        unsupported=(
            "it does not say whether attention is bidirectional and how layers are read. A run says it: "
            f"backbone.name={path} backbone.attention=bidirectional pooling=multi_layer"
        ),
    )


def _head(file: Path) -> dict[str, Tensor]:
    tensors = read_pickle(file)
    return renamed(tensors, NAMES | (_LAYERS if "pos_emb.weight" in tensors else {}), str(file))
