"""NV-Embed v1 and v2 (arXiv:2405.17428): config.json of the type `nvembed`, weights of body and head in the same files.

Texts end in EOS, tokens of an instruction are left out of the mean, the embedding has length 1. Instructions are in the card and
not in the folder; a run gives them by prompts.query. (The released code counts the instruction's tokens without BOS and so
pools the last of them; here all are left out.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from embedtrain.backbones.published.body import require
from embedtrain.backbones.published.nv_embed import HEAD, LAYOUT
from embedtrain.export import layout
from embedtrain.export.folder import ModelFolder, PoolingFolder, model_settings
from embedtrain.export.published.weights import read_weights, renamed

# Names behind `latent_attention_model.`, and those of LatentAttentionPooling.
NAMES = {
    "latents": "latents",
    "cross_attend_blocks.0.norm.weight": "token_norm.weight",
    "cross_attend_blocks.0.norm.bias": "token_norm.bias",
    "cross_attend_blocks.0.norm_context.weight": "latent_norm.weight",
    "cross_attend_blocks.0.norm_context.bias": "latent_norm.bias",
    "cross_attend_blocks.0.fn.to_q.weight": "to_query.weight",
    "cross_attend_blocks.0.fn.to_kv.weight": "to_key_value.weight",
    "cross_attend_blocks.0.fn.to_out.weight": "to_out.weight",
    "cross_attend_blocks.1.norm.weight": "feedforward_norm.weight",
    "cross_attend_blocks.1.norm.bias": "feedforward_norm.bias",
    "cross_attend_blocks.1.fn.net.0.weight": "expand.weight",
    "cross_attend_blocks.1.fn.net.0.bias": "expand.bias",
    "cross_attend_blocks.1.fn.net.2.weight": "contract.weight",
    "cross_attend_blocks.1.fn.net.2.bias": "contract.bias",
}
_FACTOR = 4  # of the feed-forward layer; the released code has it and no config


def read(path: Path) -> ModelFolder | None:
    file = path / "config.json"
    raw = layout.read_json(file) if file.exists() else {}
    if raw.get("model_type") != "nvembed" or "latent_attention_config" not in raw:
        return None
    said: dict[str, Any] = raw["latent_attention_config"]
    width = raw["text_config"]["hidden_size"]
    require(LAYOUT, said, {"hidden_dim": width, "latent_dim": width})
    return ModelFolder(
        path=path,
        transformer=path,
        pooling=PoolingFolder(
            name="latent_attention",
            options={
                "hidden_size": width,
                "num_latents": said["num_latents_value"],
                "num_heads": said["num_cross_heads"],
                "head_dim": said["cross_dim_head"],
                "expansion": _FACTOR,
            },
            include_prompt=not raw.get("is_mask_instruction", True),
            state=lambda: _head(path),
            normalize=bool(said.get("output_normalize", True)),
        ),
        prompts=model_settings(path).get("prompts", {}),
        append_eos=True,
    )


def _head(path: Path) -> dict[str, Tensor]:
    return renamed(read_weights(path, HEAD), NAMES, f"{path}: {HEAD}*")
