"""nomic-embed-text v1 and v1.5 (arXiv:2402.01613): BERT with rotary positions and SwiGLU, as contrastors writes it.

config.json has the type `nomic_bert` and sizes under GPT-2's names. transformers has the architecture and knows the keys
(`encoder.layers.<n>.attn.Wqkv`, `mlp.fc11`, ...), not the names of the sizes. Mixtures of experts (v2) and vision are others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import NomicBertConfig

from embedtrain.backbones.published.body import Body, require

LAYOUT = "nomic_bert"
_SIZES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "type_vocab_size": "type_vocab_size",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_dropout_prob": "resid_pdrop",
    "attention_probs_dropout_prob": "attn_pdrop",
}
_EXPRESSIBLE = {
    "activation_function": "swiglu",
    "causal": False,
    "prenorm": False,
    "parallel_block": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "use_rms_norm": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "scale_attn_by_inverse_layer_idx": False,
    "num_experts": 0,
    "img_size": None,
}


def read(raw: Mapping[str, Any]) -> Body | None:
    if raw.get("model_type") != "nomic_bert" or "n_embd" not in raw:
        return None
    require(LAYOUT, raw, _EXPRESSIBLE)
    multiple = raw.get("pad_vocab_size_multiple") or 1
    # Beyond the trained positions a scaling factor changes the rotation with the length of the text.
    longest = "n_positions" if raw.get("rotary_scaling_factor") is None else "max_trained_positions"
    config = NomicBertConfig(
        **{ours: raw[theirs] for ours, theirs in _SIZES.items() if raw.get(theirs) is not None},
        vocab_size=math.ceil(raw["vocab_size"] / multiple) * multiple,
        pad_token_id=raw.get("pad_token_id") or 0,
        max_position_embeddings=raw[longest],
        rope_parameters={"rope_type": "default", "rope_theta": float(raw["rotary_emb_base"])},
    )
    return Body(layout=LAYOUT, config=config, heads=("cls.",))
