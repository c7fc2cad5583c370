"""From a resolved config to live objects. The one place where names in YAML become an encoder, a loss, sources."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from embedtrain.backbones.bridge import BridgeBackbone
from embedtrain.backbones.facts import head_facts
from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.config.build import build
from embedtrain.config.signatures import signature
from embedtrain.data.prompts import Prompts
from embedtrain.data.sources import Source
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.export.load import take_heads
from embedtrain.pooling.learned_tokens import closing_ids
from embedtrain.types import Teacher


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """Backbone, pooling, projection, norm, tokenizer and prompts: everything that turns a text into a vector.

    Weights are read here (unless `backbone.weights` is "random", as under the meta device in `check`): of the backbone, and of
    heads of the same kind that lie beside it.
    """
    backbone = build(config["backbone"])
    hf_tokenizer = backbone.tokenizer()
    pooling = build_pooling(config["pooling"], backbone, hf_tokenizer)
    settings = config["encoder"]
    for key in ("max_query_length", "max_document_length"):
        if backbone.longest_text is not None and settings[key] > backbone.longest_text:
            raise ConfigError(
                f"encoder.{key}={settings[key]}: {backbone.name} knows {backbone.longest_text} positions. Use at most that many."
            )
    append_eos = settings["append_eos"]
    tokenizer = TextTokenizer(
        tokenizer=hf_tokenizer,
        prompts=Prompts(**config["prompts"]),
        max_query_length=settings["max_query_length"],
        max_document_length=settings["max_document_length"],
        append_eos=getattr(pooling, "reads_last_token", False) if append_eos is None else append_eos,
        query_augmentation=settings["query_augmentation"],
        attend_to_masks=settings["attend_to_masks"],
        closing_ids=closing_ids(pooling),
    )
    encoder = Encoder(
        backbone=backbone,
        pooling=pooling,
        tokenizer=tokenizer,
        normalize=settings["normalize"],
        projection_dim=settings["projection_dim"],
        views={
            name: build_pooling(node, backbone, hf_tokenizer)
            for name, node in settings["views"].items()
            if node is not None
        },
    )
    if backbone.weights == "pretrained":
        take_heads(encoder, backbone.name)
    if settings["train_only"]:
        freeze_others(encoder, settings["train_only"])
    return encoder


def freeze_others(encoder: Encoder, patterns: Sequence[str]) -> None:
    """Parameters whose names no pattern is found in do not train. Raises ConfigError for a pattern that is found in none."""
    unused = set(patterns)
    for name, parameter in encoder.named_parameters():
        found = {pattern for pattern in patterns if re.search(pattern, name)}
        unused -= found
        if not found:
            parameter.requires_grad_(False)
    if unused:
        some = ", ".join(list(dict(encoder.named_parameters()))[:5])
        raise ConfigError(
            f"encoder.train_only: no parameter has a name that matches {', '.join(map(repr, sorted(unused)))}. Names look like: "
            f"{some}, ..."
        )


def build_pooling(
    node: Mapping[str, Any], backbone: TransformerBackbone | BridgeBackbone, tokenizer: PreTrainedTokenizerBase
) -> nn.Module:
    """A pooling head, told what it names of the backbone and its tokenizer. The language-model head is read where named."""
    offered = head_facts(backbone, tokenizer)
    takes = signature(str(node["_target_"]), allow=[str(node["_target_"]).partition(".")[0]])
    if isinstance(backbone, BridgeBackbone):
        backbone.refuse_head(takes.name, takes.parameters)
    elif "lm_head" in takes.parameters:
        offered["lm_head"] = LanguageModelHead(backbone)
    return build(node, **offered)


def build_teachers(config: Mapping[str, Any]) -> dict[str, Teacher]:
    """The teachers by name, without their weights (`load`); `name: null` in the config drops one."""
    return {name: build(node, name=name) for name, node in config["teachers"].items() if node is not None}


def build_sources(config: Mapping[str, Any]) -> dict[str, Source]:
    """The training sources by name, a table that is split as its parts; `name: null` in the config drops one."""
    found: dict[str, Source] = {}
    for name, node in config["data"]["sources"].items():
        if node is not None:
            found |= build(node).as_sources(name)
    return found


def build_evaluators(config: Mapping[str, Any]) -> dict[str, Callable[..., EvaluationResult]]:
    """The evaluators by name; `name: null` in the config drops one."""
    return {name: build(node) for name, node in config["evaluation"]["evaluators"].items() if node is not None}
