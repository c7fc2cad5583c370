"""Published models whose code is their own, expressed by a family of transformers or a model of ours: no code of a folder is run.

Such a model says in its config.json what it is, under names of its own, and stores the weights of a known architecture under
other keys. A reader, one file for each, recognises the config by its content (never by the name of the folder) and says which
transformers config is the same model and how the keys are called there. What no config of transformers can say is refused.

nv_embed.py     a bidirectional Mistral inside NV-Embed
nomic_bert.py   nomic-embed-text v1 and v1.5 in the form that contrastors writes
new_gte.py      "new": gte v1.5, mGTE, snowflake-arctic-embed-m-v2.0, stella_en_400M
jina_bert.py    jina-embeddings-v2 in English
colbert.py      a BERT inside ColBERT
adapter.py      a LoRA adapter as peft stores it, added to its base model

Heads on top of a body are read by `embedtrain.export.published`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from embedtrain.backbones.published import colbert, jina_bert, new_gte, nomic_bert, nv_embed
from embedtrain.backbones.published.body import Body
from embedtrain.errors import ConfigError

__all__ = ["Body", "published_body"]

_READERS: dict[str, Callable[[Mapping[str, Any]], Body | None]] = {
    "NV-Embed": nv_embed.read,
    "nomic_bert of contrastors": nomic_bert.read,
    'the "new" architecture of GTE': new_gte.read,
    "JinaBERT": jina_bert.read,
    "ColBERT": colbert.read,
}


def published_body(name: str, hub: Mapping[str, Any]) -> Body | None:
    """How transformers expresses the model in a folder or under a hub name; None where its config.json is transformers' own.

    Raises OSError where there is no config.json, CheckpointError for a known layout that transformers cannot express, ConfigError
    for a model that only its own code knows.
    """
    if hub["trust_remote_code"]:
        return None
    raw, _ = PreTrainedConfig.get_config_dict(name, revision=hub["revision"])
    for read in _READERS.values():
        body = read(raw)
        if body is not None:
            return body
    kind = raw.get("model_type")
    if raw.get("auto_map") and kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"backbone.name: {name} is of the type {kind!r}, which only code in its own repository knows "
            f"({', '.join(sorted(map(str, raw['auto_map'].values())))}). It is not run. Read without their code: "
            f"{', '.join(_READERS)}. If you trust the code, set backbone.trust_remote_code=true."
        )
    return None
