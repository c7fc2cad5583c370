"""The architecture `new` of GTE (arXiv:2407.19669): gte-*-en-v1.5, gte-multilingual-base, snowflake-arctic-embed-m-v2.0.

transformers has it as `gte` and knows the keys (`encoder.layer.<n>.attention.qkv_proj`, `mlp.up_gate_proj`, ...), not the config.
The fixed NTK scaling of the rotary positions, with a factor s and heads of d numbers,

    angle_i = position * (s * theta) ** (-2i / d) * s ** (-2 / d)

is transformers' linear scaling by s ** (2 / d) of the base s * theta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GteConfig

from embedtrain.backbones.published.body import BERT_SETTINGS, Body, require
from embedtrain.errors import CheckpointError

LAYOUT = "new (GTE)"
_EXPRESSIBLE = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "pack_qkv": True,
}


def read(raw: Mapping[str, Any]) -> Body | None:
    if raw.get("model_type") != "new" or "logn_attention_scale" not in raw:
        return None
    require(LAYOUT, raw, _EXPRESSIBLE)
    config = GteConfig(**{key: raw[key] for key in BERT_SETTINGS if key in raw}, rope_parameters=_rope(raw))
    return Body(layout=LAYOUT, config=config, heads=("classifier.", "new.pooler.", "lm_head."))


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    theta, scaling = float(raw["rope_theta"]), raw.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    if scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
        raise CheckpointError(
            f"config.json of {LAYOUT}: rope_scaling is {scaling}; known are null and ntk with a factor alone."
        )
    factor = float(scaling["factor"])
    width = raw["hidden_size"] // raw["num_attention_heads"]
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / width)}
