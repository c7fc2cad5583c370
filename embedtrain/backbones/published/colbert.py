"""ColBERT's own checkpoints: the body under its family's prefix (`bert.`), and `linear.weight` beside it.

config.json is the body's, with the architecture `HF_ColBERT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from embedtrain.backbones.published.body import Body

LAYOUT = "ColBERT"
ARCHITECTURE = "HF_ColBERT"
HEAD = "linear."


def read(raw: Mapping[str, Any]) -> Body | None:
    kind = str(raw.get("model_type"))
    if raw.get("architectures") != [ARCHITECTURE] or kind not in CONFIG_MAPPING:
        return None
    config = CONFIG_MAPPING[kind].from_dict(dict(raw))
    return Body(layout=LAYOUT, config=config, heads=(HEAD,), pooler=("pooler.", f"{kind}.pooler."))
