"""BERT without positions: scores fall with the distance of two tokens, and the feed-forward layer has a gate.

    softmax_j( q_i . k_j / sqrt(d) - m_h |i - j| )        one slope m_h for each head
    FF(x) = W_o (act(W_g x) * W_u x)                      W_g over W_u in one matrix, gated_layers

JinaBERT (arXiv:2310.19923, sec. 3): ALiBi (arXiv:2108.12409) in both directions, GEGLU. Nothing in it ends at a number of
tokens, so it reads texts that are longer than those it was trained on. Weights have the names of the published checkpoints.

transformers has no such model. This file imports nothing of embedtrain: `save_pretrained` puts it beside the weights, and a
folder is loaded elsewhere with `trust_remote_code=True`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.models.bert.modeling_bert import BertAttention, BertOnlyMLMHead, BertPreTrainedModel
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

_GATES = {"geglu": "gelu", "reglu": "relu"}


class AlibiBertConfig(BertConfig):
    """BERT's, and `feed_forward_type`: geglu or reglu. `max_position_embeddings` is for readers; no layer has that size."""

    model_type = "alibi_bert"

    max_position_embeddings: int = 8192
    attention_probs_dropout_prob: float | int = 0.0
    feed_forward_type: str = "geglu"


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """m_h of each head: 2^(-8 h / n), h = 1 .. n, for n heads, a power of 2.

    Otherwise those of the next lower power of 2, then every other one of the next higher.
    """
    lower = 2 ** int(math.log2(heads))
    if lower == heads:
        return tuple(2 ** (-8 * (h + 1) / heads) for h in range(heads))
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[::2][: heads - lower]


def alibi_mask(slopes: tuple[float, ...], mask: Tensor | None, states: Tensor) -> Tensor:
    """What is added to the scores, [N or 1, heads, T, T] in the numbers of `states` [N, T, H].

    mask: of padding, [N, 1, T, T], as numbers that are added or as bool; None where there is none.
    """
    exact: dict[str, Any] = {"device": states.device, "dtype": torch.promote_types(states.dtype, torch.float32)}
    position = torch.arange(states.shape[1], **exact)
    bias = -torch.tensor(slopes, **exact)[:, None, None] * (position[:, None] - position).abs()
    if mask is None:
        return bias[None].to(states.dtype)
    if mask.dtype == torch.bool:
        return bias.to(states.dtype).masked_fill(~mask, torch.finfo(states.dtype).min)
    return bias.to(states.dtype) + mask


class AlibiBertEmbeddings(nn.Module):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """`words`: vectors [N, T, H]. Without types, all tokens are of type 0."""
        types = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        return self.dropout(self.LayerNorm(words + types))


class AlibiBertGLU(nn.Module):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = ACT2FN[_GATES[config.feed_forward_type]]
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        gate, up = self.gated_layers(states).chunk(2, dim=-1)
        return self.layernorm(states + self.wo(self.dropout(self.act(gate) * up)))


class AlibiBertLayer(GradientCheckpointingLayer):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.mlp = AlibiBertGLU(config)

    def forward(self, hidden_states: Tensor, attention_mask: Any, **kwargs: Any) -> Tensor:
        attended, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        return self.mlp(attended)


class AlibiBertEncoder(nn.Module):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(AlibiBertLayer(config) for _ in range(config.num_hidden_layers))


class AlibiBertPreTrainedModel(BertPreTrainedModel):
    config_class = AlibiBertConfig
    _supports_flash_attn = False  # it takes no bias
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": AlibiBertLayer}  # noqa: RUF012  (as transformers declares it)


class AlibiBertModel(AlibiBertPreTrainedModel):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__(config)
        self.embeddings = AlibiBertEmbeddings(config)
        self.encoder = AlibiBertEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """`position_ids` change nothing: only distances matter, and whoever packs texts knows where each begins."""
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        states = self.embeddings(words, token_type_ids)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=attention_mask)
        slopes = alibi_slopes(self.config.num_attention_heads)
        if mask is None or isinstance(mask, Tensor):
            mask = alibi_mask(slopes, mask, states)
        else:  # a kernel with a mask of its own kind makes the bias itself
            kwargs["alibi_slopes"] = slopes
        for layer in self.encoder.layer:
            states = layer(states, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=states)


class AlibiBertForMaskedLM(AlibiBertPreTrainedModel):
    _tied_weights_keys = {  # noqa: RUF012
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__(config)
        self.bert = AlibiBertModel(config)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    @can_return_tuple
    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> MaskedLMOutput:
        output = self.bert(input_ids, **kwargs)
        logits = self.cls(output.last_hidden_state)
        return MaskedLMOutput(logits=logits, hidden_states=output.hidden_states)


# What a folder says of the code beside its weights.
AlibiBertConfig.register_for_auto_class()
AlibiBertModel.register_for_auto_class("AutoModel")
AlibiBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
