"""jina-embeddings-v2 in English (arXiv:2310.19923): BERT with ALiBi in both directions and GEGLU, as JinaBERT writes it.

config.json has the type `bert` and `position_embedding_type: alibi`. Ours (`alibi_bert.py`) has its keys: `encoder.layer.<n>.
attention.self.query`, `mlp.gated_layers`, ... The models for code and for other languages norm queries and keys; they are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedtrain.backbones.alibi_bert import AlibiBertConfig
from embedtrain.backbones.published.body import BERT_SETTINGS, Body
from embedtrain.errors import CheckpointError

LAYOUT = "JinaBERT"


def read(raw: Mapping[str, Any]) -> Body | None:
    if raw.get("model_type") != "bert" or raw.get("position_embedding_type") != "alibi":
        return None
    if raw.get("feed_forward_type") not in ("geglu", "reglu"):
        raise CheckpointError(
            f"config.json of {LAYOUT}: feed_forward_type is {raw.get('feed_forward_type')!r}; known are geglu and reglu."
        )
    if "qk-post-norm" in str(raw.get("auto_map")):
        raise CheckpointError(
            f"config.json of {LAYOUT}: its code is that of jina-bert-v2-qk-post-norm, which norms queries and keys. Known is "
            "jina-bert-implementation."
        )
    config = AlibiBertConfig(**{key: raw[key] for key in (*BERT_SETTINGS, "feed_forward_type") if key in raw})
    return Body(layout=LAYOUT, config=config, renamed={"^bert[.]": ""}, heads=("cls.",))
