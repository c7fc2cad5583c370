"""SPLADE as a SparseEncoder of sentence-transformers: the whole language model, and SpladePooling."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.export import layout
from embedtrain.pooling.splade import SpladePooling

# What sentence-transformers makes of the language model: its logits are the vectors of tokens.
TASK = {
    "transformer_task": "fill-mask",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "token_embeddings",
}


def check_splade(encoder: Encoder, head: SpladePooling) -> None:
    """Raises ConfigError for a language model that a SparseEncoder does not load, and for tokens that it does not leave out."""
    kind = type(head.lm_head.model)
    config: Any = encoder.backbone.config
    if MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None) is not kind:
        raise ConfigError(
            f"pooling: splade on a {kind.__name__} cannot be exported: sentence-transformers' SparseEncoder reads masked "
            "language models only. Use a BERT-like encoder."
        )
    prompts = encoder.tokenizer.prompts
    if not prompts.pool_prompt and any(prompts.templates.values()):
        raise ConfigError(
            "prompts.pool_prompt=false cannot be exported with splade: sentence-transformers gives the words of a prompt their "
            "weights. Set it to true."
        )


def language_model(encoder: Encoder, head: SpladePooling) -> PreTrainedModel:
    """Body and head as the one transformers model that they are two parts of. Weights are shared, not copied."""
    head_alone: Any = head.lm_head.model
    body: Any = encoder.backbone.merged_model()  # type: ignore[operator]
    config = copy.deepcopy(body.config)
    config.tie_word_embeddings = head.lm_head.tied
    with torch.device("meta"):
        whole: PreTrainedModel = type(head_alone)(config)
    weights: dict[str, Tensor] = {f"{whole.base_model_prefix}.{name}": x for name, x in body.state_dict().items()}
    whole.load_state_dict(weights | head_alone.state_dict(), strict=False, assign=True)
    whole.tie_weights()
    return whole


def write_splade(head: SpladePooling, folder: Path) -> list[tuple[str, str]]:
    """Write the module behind the transformer and return it as (class, name) for modules.json."""
    config = {
        "pooling_strategy": head.aggregation,
        "activation_function": "relu",
        "embedding_dimension": head.output_dim,
    }
    layout.write_json(folder / "1_SpladePooling" / "config.json", config)
    return [(layout.SPLADE, "SpladePooling")]


def read_splade(steps: list[tuple[str, Path]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the head. Raises CheckpointError for modules that we do not have."""
    names = [kind.rsplit(".", 1)[-1] for kind, _ in steps]
    config = layout.read_json(steps[0][1] / "config.json") if names == ["SpladePooling"] else {}
    if (
        not config
        or config.get("activation_function", "relu") != "relu"
        or settings.get("transformer_task") != "fill-mask"
    ):
        raise CheckpointError(
            f"a SparseEncoder of {', '.join(names) or 'nothing'} {config} cannot be read. Known is a masked language model with "
            "one SpladePooling of activation relu."
        )
    return {"aggregation": config.get("pooling_strategy", "max")}
