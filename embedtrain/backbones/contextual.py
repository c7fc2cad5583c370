"""Contextual document embeddings (Morris and Rush 2024, arXiv:2410.02525): a text is read behind vectors of other documents.

    first encoder     each of J context documents -> the mean of its states -> two layers -> a vector
    second encoder    [J vectors, P learned ones, the tokens of a text] -> the states of the text's tokens, and no others

What a word means in a corpus shows in its other documents; the vectors are its sample. In training they are documents of the
batch, and both encoders learn (`training/step.py`); afterwards they are a sample of the corpus (`Encoder.set_context`).

The context carries no position. Where positions are computed (rotary), that of the context is 0, which is no rotation, and the
learned vectors and the text go on from J, as in the released code. Where they are learned there are only so many: all of the
context stands at the first one, and the text goes on from there. So its order is of no consequence, except to layers that see a
window of the text alone (ModernBERT's); it is another one in every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedtrain.backbones.direction import Direction
from embedtrain.backbones.loading import Weights
from embedtrain.backbones.positions import refuse_longer
from embedtrain.backbones.transformer import Kernel, TransformerBackbone
from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens

FIRST_ENCODER = "context_encoder"  # beside the second one, in a folder that holds both


class ContextualBackbone(TransformerBackbone):
    """Two transformers of one kind: this one reads each text behind vectors that the other, `first`, made of other documents.

    name: both begin as this model, except for a folder that holds both (an exported contextual model).
    num_context: documents in front of each text, J. They cost as much as J more tokens of each text.
    num_prompts: learned vectors between them and the text, P, made by two layers from one.
    null_share: in training, part of the context vectors that a learned null vector takes the place of, drawn for each text.
        It stands for all of them where no context is known.
    Others as `TransformerBackbone`, for both; all weights train.
    """

    beside = ("first", "context_layers")  # what learns beside the model that reads the texts

    def __init__(
        self,
        *,
        name: str,
        num_context: int = 512,
        num_prompts: int = 8,
        null_share: float = 0.005,
        weights: Weights = "pretrained",
        attention: Direction | None = None,
        gradient_checkpointing: bool = False,
        kernel: Kernel = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        dropout: float | None = None,
    ) -> None:
        for key, value, least in (("num_context", num_context, 1), ("num_prompts", num_prompts, 0)):
            if value < least:
                raise ConfigError(f"backbone.{key}={value}: expected at least {least}.")
        if not 0 <= null_share < 1:
            raise ConfigError(f"backbone.null_share={null_share}: expected a share from 0 to below 1.")
        settings: dict[str, Any] = {
            "weights": weights,
            "attention": attention,
            "gradient_checkpointing": gradient_checkpointing,
            "kernel": kernel,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "dropout": dropout,
        }
        super().__init__(name=name, **settings)
        if "position_ids" not in self._accepts:
            raise ConfigError(
                f"backbone.name: {name} ({self.config.model_type}) takes no position ids, so a context without positions cannot "
                "stand in front of its texts. Use another model, such as a BERT, ModernBERT or NomicBERT."
            )
        own = Path(self.name) / FIRST_ENCODER
        self.first = TransformerBackbone(name=str(own) if own.is_dir() else self.name, **settings)
        self.num_context = num_context
        self.num_prompts = num_prompts
        self.null_share = null_share
        self.first_position = self._first_position  # of the context
        self.text_at = num_context if self.longest_text is None else 0  # the learned vectors begin so much later
        if self.longest_text is not None:
            self.longest_text -= num_prompts
        self.context_layers = ContextLayers(self.hidden_size, num_prompts)
        self.context_layers.null.requires_grad_(null_share > 0)
        self.context: Tensor | None
        self.register_buffer("context", None, persistent=False)  # [J, H]: not a weight, since weights make it

    @property
    def tokens_in_front(self) -> int:
        """Vectors that are read in front of the tokens of each text."""
        return self.num_context + self.num_prompts

    def encode_context(self, tokens: RaggedTokens) -> Tensor:
        """A vector of each document [N, H], by the first encoder: of all its tokens, its prompt among them."""
        states: Tensor = self.first(tokens)
        text = torch.repeat_interleave(torch.arange(len(tokens)), tokens.lengths).to(states.device)
        lengths = tokens.lengths.to(states.device)[:, None]
        sums = states.new_zeros(len(tokens), states.shape[1], dtype=_wide(states)).index_add(
            0, text, states.to(_wide(states))
        )
        return self.context_layers.to_context(sums / lengths).to(_wide(states))

    def forward(
        self,
        tokens: RaggedTokens,
        *,
        all_layers: bool = False,
        routing: bool = False,
        inputs: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """As of `TransformerBackbone`: of the tokens of the texts alone.

        context: vectors of J documents [J, H], in any order; None: those that are set, or else the null vector J times.
        """
        if tokens.ids.device.type not in self._proved:
            self._prove(tokens.ids.device)
        refuse_longer(int(tokens.lengths.max()), self.longest_text, self.name)
        words = self.hf_model.get_input_embeddings()(tokens.ids) if inputs is None else inputs
        front = self._front(len(tokens), self.context if context is None else context).to(words.dtype)
        place = _Places(tokens, front.shape[1])
        order = place.order.to(words.device, non_blocking=True)
        states = self._states(
            place.wide,
            all_layers=all_layers,
            routing=routing,
            inputs=torch.cat([front.flatten(0, 1), words])[order],
            positions=place.positions(self.num_context, self.text_at),
        )
        of_texts = place.texts.to(words.device, non_blocking=True)
        states = [state[of_texts] for state in states]
        return states if all_layers or routing else states[-1]

    def _front(self, texts: int, context: Tensor | None) -> Tensor:
        """What stands in front of each text [N, J + P, H]."""
        null = self.context_layers.null
        if context is None:
            vectors = null.expand(texts, self.num_context, -1)
        elif context.shape != (self.num_context, self.hidden_size):
            raise ConfigError(
                f"context: expected the vectors of {self.num_context} documents, {self.hidden_size} numbers each, got "
                f"{tuple(context.shape)}."
            )
        else:
            vectors = context.expand(texts, -1, -1)
            if self.training and self.null_share:
                dropped = torch.rand(texts, self.num_context, 1, device=context.device) < self.null_share
                vectors = torch.where(dropped, null.to(context.dtype), vectors)
        prompts = self.context_layers.prompts().to(vectors.dtype)
        return torch.cat([vectors, prompts.expand(texts, -1, -1)], dim=1)


class ContextLayers(nn.Module):
    """What is learned around both encoders."""

    def __init__(self, size: int, num_prompts: int) -> None:
        super().__init__()
        self.to_context = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, size))
        last = nn.Linear(size, size * num_prompts)
        self.to_prompts = nn.Sequential(nn.Linear(size, size), nn.ReLU(), last) if num_prompts else None
        self.null = nn.Parameter(0.01 * torch.randn(size))

    def prompts(self) -> Tensor:
        """The learned vectors between context and text [P, H]."""
        size = self.null.numel()
        if self.to_prompts is None:
            return self.null.new_zeros(0, size)
        return self.to_prompts(torch.ones_like(self.null)).view(-1, size)


class _Places:
    """Where vectors in front and tokens of texts lie in the flat run of both. All on the CPU."""

    def __init__(self, tokens: RaggedTokens, front: int) -> None:
        texts, size = len(tokens), tokens.num_tokens
        offsets = tokens.offsets + front * torch.arange(texts + 1)
        total = size + front * texts
        text = torch.repeat_interleave(torch.arange(texts), tokens.lengths)
        self.texts = torch.arange(size) + front * (text + 1)  # [S] of the tokens
        self.front = offsets[:-1, None] + torch.arange(front)  # [N, F] of what is in front
        self.inside = torch.arange(size) - tokens.offsets[text]  # [S] place of each token in its text
        self.order = torch.empty(total, dtype=torch.int64)  # [F N + S] in [all that is in front, all tokens]
        self.order[self.front.flatten()] = torch.arange(texts * front)
        self.order[self.texts] = texts * front + torch.arange(size)
        ids = torch.zeros(1, dtype=torch.int64, device=tokens.ids.device).expand(total)  # none is read
        self.wide = RaggedTokens(ids, offsets, torch.stack([offsets[:-1], offsets[1:]], dim=1), unseen=tokens.unseen)

    def positions(self, context: int, start: int) -> Tensor:
        """[F N + S]: 0 for the context, then on from `start`."""
        found = torch.zeros_like(self.order)
        prompts = self.front.shape[1] - context
        found[self.front[:, context:]] = start + torch.arange(prompts)
        found[self.texts] = start + prompts + self.inside
        return found


def _wide(states: Tensor) -> torch.dtype:
    """At least fp32."""
    return torch.promote_types(states.dtype, torch.float32)
