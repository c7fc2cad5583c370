"""NV-Embed v1 and v2 (arXiv:2405.17428): Mistral without its causal mask, under `embedding_model.`.

config.json has the type `nvembed` and two inner configs: `text_config` of the body, `latent_attention_config` of the head. The
released code gives the attention no window, whatever `sliding_window` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import MistralConfig

from embedtrain.backbones.published.body import Body, require

LAYOUT = "NV-Embed"
HEAD = "latent_attention_model."
_BODY = "embedding_model."
# Of the inner config, what is no property of the body's arithmetic.
_FOREIGN = ("model_type", "auto_map", "architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype")


def read(raw: Mapping[str, Any]) -> Body | None:
    if raw.get("model_type") != "nvembed" or "latent_attention_config" not in raw:
        return None
    text = dict(raw["text_config"])
    require(LAYOUT, raw, {"padding_side": "right", "add_eos": True})
    for key in _FOREIGN:
        text.pop(key, None)
    config = MistralConfig(**text | {"sliding_window": None, "is_causal": False})
    return Body(layout=LAYOUT, config=config, renamed={f"^{_BODY.replace('.', '[.]')}": ""}, heads=(HEAD,))
