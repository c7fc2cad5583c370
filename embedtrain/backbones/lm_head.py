"""The language-model head of a backbone: hidden states [S, H] -> logits [S, V].

transformers keeps a head only inside a whole model, spelt differently in each family: `cls.predictions`, `lm_head`,
`vocab_transform`. So the head here *is* that model with its body taken out: hidden states go in where the body's would
come from, and the family's own forward does the rest (transform, norm, decoder, soft cap).

The decoder of most models is the matrix of input embeddings once more. That matrix belongs to the backbone: the head
reads it where it lies and never owns, copies, saves or counts it.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from embedtrain.backbones.loading import quiet_transformers
from embedtrain.backbones.lora import has_adapters
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError

log = logging.getLogger(__name__)


class LanguageModelHead(nn.Module):
    """What the checkpoint of `backbone` holds on top of its hidden states, masked or causal, whichever its family has.

    What the checkpoint lacks is made new, and the log says so: a transform starts random, a decoder is tied to the input
    embeddings. New parts always train; those of the checkpoint train unless the backbone is frozen under LoRA.

    Raises ConfigError for a family without a language model, for LoRA on the embeddings that the decoder reads, and for new
    tokens, whose rows it would not read.
    """

    def __init__(self, backbone: TransformerBackbone) -> None:
        super().__init__()
        if backbone.new_tokens:
            raise ConfigError(
                "backbone.new_tokens: a language-model head has no logits for new tokens. Set it to null."
            )
        body = backbone.hf_model
        self.model, missing = _language_model(backbone)
        decoder = _decoder_of(self.model, backbone)
        setattr(self.model, self.model.base_model_prefix, _Passage())
        name = next(name for name, module in self.model.named_modules() if module is decoder)
        # Where the checkpoint has no decoder, a new one of V x H numbers would have to be learned from nothing.
        self.tied = body.config.tie_word_embeddings or f"{name}.weight" in missing
        if self.tied:
            _replace(self.model, decoder, TiedDecoder(_input_embeddings(body), decoder.bias))
        self.new = sorted(missing & {name for name, _ in self.model.named_parameters()})
        if has_adapters(body):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in self.new)
        self.vocab_size: int = body.config.vocab_size
        self._refuse_odd(backbone)
        self._say(backbone, bool(missing))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [S, V] of hidden states [S, H], in the numbers of autocast, else of the head."""
        own = next(self.model.parameters(), None)
        if own is not None:
            hidden = hidden.to(own.dtype)  # frozen bf16 states meet fp32 weights
        return self.model(inputs_embeds=hidden.unsqueeze(0)).logits.squeeze(0)

    def _refuse_odd(self, backbone: TransformerBackbone) -> None:
        """The forward of a family may do more than read its body's output; then this is no head for it."""
        expected = (2, self.vocab_size)
        with torch.no_grad():
            hidden = torch.zeros(2, backbone.hidden_size, device=backbone.device)
            try:
                found: object = tuple(self(hidden).shape)
            except (AttributeError, TypeError, RuntimeError) as error:
                found = f"{type(error).__name__}: {error}"
        if found != expected:
            raise ConfigError(
                f"backbone.name: the head of {type(self.model).__name__} ({backbone.name}) cannot be used by itself: "
                f"expected logits {expected}, got {found}. Use a BERT-like encoder or a Llama-like decoder."
            )

    def _say(self, backbone: TransformerBackbone, lacking: bool) -> None:
        decoder = "tied to the input embeddings" if self.tied else "a matrix of its own"
        if lacking:
            log.warning(
                "backbone.name: %s has no language-model head. It is new: decoder %s%s.",
                *(backbone.name, decoder, f", random or zero at the start: {', '.join(self.new)}" if self.new else ""),
            )
        else:
            log.info("language-model head of %s: %s, decoder %s", backbone.name, type(self.model).__name__, decoder)


class TiedDecoder(nn.Module):
    """Logits by the input embeddings of a body, which stays their owner: they are no parameter of this module."""

    def __init__(self, embeddings: nn.Embedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        self._embeddings = (embeddings,)  # in a tuple: a module among the attributes would be registered
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """[V, H]"""
        return self._embeddings[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight.to(hidden.dtype), self.bias)


class _Passage(nn.Module):
    """In the place of a body: what goes in as embeddings comes out as its last hidden states."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _language_model(backbone: TransformerBackbone) -> tuple[PreTrainedModel, set[str]]:
    """The backbone's model with a head and one layer, and the names of its weights that no checkpoint gave."""
    config = _of_one_layer(backbone.config)
    kind = _kind_of_model(config, backbone.name)
    with torch.device(backbone.device):
        if backbone.weights == "random":
            model, missing = kind._from_config(config, dtype=torch.float32), set()
        else:
            with quiet_transformers():
                model, report = kind.from_pretrained(
                    backbone.name, config=config, dtype=torch.float32, output_loading_info=True, **backbone.hub
                )
            missing = set(report["missing_keys"])
    return model.to(backbone.device), missing


def _of_one_layer(config: Any) -> Any:
    """The same model with one layer, so that reading its head reads little else. Families scale weights by 1 / layers."""
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = 1
    if getattr(shallow, "layer_types", None) is not None:
        shallow.layer_types = shallow.layer_types[:1]
    return shallow


def _kind_of_model(config: Any, name: str) -> Any:
    """The class of the family's language model, masked where it has one."""
    for mapping in (MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        kind = mapping.get(type(config), None)
        if kind is not None:
            return kind[0] if isinstance(kind, tuple) else kind
    raise ConfigError(
        f"backbone.name: {name} ({config.model_type}) belongs to a family without a language model, but this run needs "
        "logits over the vocabulary. Use an encoder with a masked or a decoder with a causal language model."
    )


def _decoder_of(model: PreTrainedModel, backbone: TransformerBackbone) -> nn.Linear:
    decoder = model.get_output_embeddings()
    if not isinstance(decoder, nn.Linear):
        raise ConfigError(
            f"backbone.name: {backbone.name} ({backbone.config.model_type}) has no linear decoder over its vocabulary, but "
            f"{type(decoder).__name__}. Use a BERT-like encoder or a Llama-like decoder."
        )
    return decoder


def _input_embeddings(body: PreTrainedModel) -> nn.Embedding:
    embeddings = body.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding) or has_adapters(embeddings):
        raise ConfigError(
            f"backbone.lora.target_modules: the input embeddings have an adapter ({type(embeddings).__name__}), and the "
            "language-model head reads the same matrix. Leave the embeddings out of target_modules."
        )
    return embeddings


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if module is old:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new)
