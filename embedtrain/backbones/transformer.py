"""Any transformers encoder or decoder as a backbone: ragged tokens in, hidden states [S, H] out.

Two paths give the same states. *Ragged*: all texts as one flat run, positions restarting, attention by
`attention.py`; no token of padding is ever computed. *Padded*: the model as its authors wrote it. Which one runs is
settled by behaviour: the first forward on each kind of device compares them on a few texts, and proves the direction of
attention through the very kernel in use.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedtrain.backbones import attention as ragged_kernel
from embedtrain.backbones.direction import Direction, observed_direction
from embedtrain.backbones.final_norm import final_norm
from embedtrain.backbones.loading import Weights, load_config, load_model, load_tokenizer, set_dropout
from embedtrain.backbones.locate import locate
from embedtrain.backbones.longer import extend_positions
from embedtrain.backbones.lora import Lora, add_adapters, has_adapters, merged_model
from embedtrain.backbones.new_tokens import (
    add_rows,
    has_new_rows,
    read_tokens,
    refuse_adapters_on_the_table,
    register,
    with_rows,
)
from embedtrain.backbones.padded import padded_states
from embedtrain.backbones.parity import disagreement, parity_tokens, tolerance
from embedtrain.backbones.positions import first_position, longest_text, refuse_longer
from embedtrain.backbones.quantise import Quantise, quantise_layers, refuse_adapters
from embedtrain.backbones.ragged import RaggedLayout
from embedtrain.backbones.random_bits import replace_dropout
from embedtrain.backbones.routing import routing_weights
from embedtrain.backbones.soft_mask import SoftMask
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.types import RaggedTokens

log = logging.getLogger(__name__)

Kernel = Literal["auto", "ragged", "padded"]
Settings = TypeVar("Settings")


class TransformerBackbone(nn.Module):
    """A transformers model by name or folder.

    name: a folder, a name on the model hub, or `package://<package>/<folder>` inside an installed Python package.
    weights: "pretrained", or "random" to start from the configuration alone (also on the meta device).
    attention: "bidirectional" or "causal"; "soft" goes from causal to bidirectional while it trains; None keeps the model's
        own. A decoder made bidirectional says so in its config (`is_causal: false`), so the exported model stays so elsewhere.
    soft_mask: the keys of `SoftMask`, with attention "soft".
    quantise: the keys of `Quantise`: weights are rounded wherever they are used, and exported rounded; None: never.
    new_tokens: tokens to add, by name the token that each starts with, or None for the mean of all; they train (`new_tokens.py`).
    dtype: of frozen weights, "float32" or "bfloat16". Weights that train are always fp32; compute in bf16 by
        `training.mixed_precision`.
    lora: None trains every weight; else the keys of `Lora`.
    gradient_checkpointing: recompute each layer in the backward, for memory.
    kernel: "ragged" or "padded" states; "auto" takes ragged where it is exact and says in the log what it took.
    dropout: None keeps the model's probabilities; else all of them.
    positions: None keeps the learned positions; else so many, a multiple of them: the new ones lie between the published
        ones, which get no gradient (`longer.py`).
    """

    def __init__(
        self,
        *,
        name: str,
        weights: Weights = "pretrained",
        attention: Direction | Literal["soft"] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        kernel: Kernel = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        dropout: float | None = None,
        positions: int | None = None,
        soft_mask: Mapping[str, Any] | None = None,
        quantise: Mapping[str, Any] | None = None,
        new_tokens: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        _refuse_unknown("backbone.weights", weights, ("pretrained", "random"))
        _refuse_unknown("backbone.attention", attention, (None, "bidirectional", "causal", "soft"))
        _refuse_unknown("backbone.dtype", dtype, ("float32", "bfloat16"))
        _refuse_unknown("backbone.kernel", kernel, ("auto", "ragged", "padded"))
        if dtype != "float32" and lora is None:
            raise ConfigError(
                f"backbone.dtype: {dtype} is for frozen weights, but without backbone.lora every weight trains, and "
                "small updates are lost in it. Use float32 here and training.mixed_precision=bf16."
            )
        self.name = name = locate(name)
        self.weights: Weights = weights
        self.hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = load_config(name, self.hub)
        if dropout is not None:
            set_dropout(config, dropout)
        self.hf_model = load_model(name, config, weights, getattr(torch, dtype), self.hub)
        if positions is not None:
            extend_positions(self.hf_model, positions, name)
        self.new_tokens = read_tokens(new_tokens or {})
        if self.new_tokens:
            self._grow(quantise)
        self.hidden_size: int = self.config.hidden_size
        self.soft_mask = _soft_mask(attention, soft_mask)
        self._turn(attention)
        self._expected = attention
        self.direction: Direction | None = None  # as observed; None on the meta device, where nothing can be
        if quantise is not None:
            refuse_adapters(lora)
            quantise_layers(self.hf_model, _keys_of("quantise", Quantise, quantise), name)
        if lora is not None:
            add_adapters(self.hf_model, _keys_of("lora", Lora, lora))
            if self.new_tokens:
                refuse_adapters_on_the_table(self.hf_model)
        if gradient_checkpointing:
            # The reentrant kind loses gradients of adapters and breaks with two forwards per step.
            self.hf_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.hf_model.enable_input_require_grads()
        replace_dropout(self.hf_model)

        self._accepts = frozenset(inspect.signature(self.hf_model.forward).parameters)
        self._first_position = first_position(self.hf_model)
        self.longest_text = longest_text(self.hf_model)  # tokens; None: no limit
        self._padded_attention: str = self.config._attn_implementation
        self._asked: Kernel = kernel
        self._kernel: Literal["ragged", "padded"] = "padded"
        self._proved: set[str] = set()  # device types on which the kernel and the direction were proved
        if kernel == "padded":
            self._use("padded")
        else:
            self._take_ragged(self._lacks_for_ragged())
        self._prove(self.device)

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.hf_model.config

    @property
    def device(self) -> torch.device:
        return next(self.hf_model.parameters()).device

    @property
    def kernel(self) -> str:
        """The path in use: "ragged" or "padded"."""
        return self._kernel

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that came with the model, with the new tokens."""
        return register(load_tokenizer(self.name, self.hub), self.new_tokens)

    def merged_model(self) -> PreTrainedModel:
        """A plain transformers model with adapters and new rows, if any, in its weights; for export. Nothing here changes."""
        model = merged_model(self.hf_model) if has_adapters(self.hf_model) else self.hf_model
        return with_rows(model) if has_new_rows(model) else model

    def forward(
        self, tokens: RaggedTokens, *, all_layers: bool = False, routing: bool = False, inputs: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        """The last hidden states [S, H]; with `all_layers` a list of them: of the embedding, then of every layer.

        routing: a list in any case, and behind the states the routing weights of a mixture of experts, [S, R].
        inputs: vectors [S, H] that are read in place of the input embeddings of the ids.
        """
        if tokens.ids.device.type not in self._proved:
            self._prove(tokens.ids.device)
        states = self._states(tokens, all_layers=all_layers, routing=routing, inputs=inputs)
        return states if all_layers or routing else states[-1]

    def finish(self, states: Tensor) -> Tensor:
        """States [S, H] of an inner layer as this model's last hidden states, were it cut after that layer."""
        return final_norm(self.hf_model)(states)

    def _states(
        self,
        tokens: RaggedTokens,
        *,
        all_layers: bool = False,
        routing: bool = False,
        inputs: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> list[Tensor]:
        """`positions` [S], CPU, of each token in place of 0, 1, 2, ... in each text."""
        wanted = {"output_hidden_states": all_layers, "output_router_logits": routing}
        options = {name: True for name, is_wanted in wanted.items() if is_wanted}
        layout = RaggedLayout.of(tokens)
        if positions is None:
            refuse_longer(layout.longest, self.longest_text, self.name)
        if len(layout.groups) == len(set(layout.lengths)):  # as chunks come: equal lengths are neighbours
            return self._run(tokens.ids if inputs is None else inputs, layout, options, positions)
        order = torch.argsort(tokens.lengths, descending=True, stable=True)
        grouped = tokens.select(order)
        flat = RaggedTokens(torch.arange(tokens.num_tokens), tokens.offsets, tokens.spans).select(order).ids
        positions = None if positions is None else positions[flat]
        flat = flat.to(tokens.ids.device)
        layout = RaggedLayout.of(grouped)
        states = self._run(grouped.ids if inputs is None else inputs[flat], layout, options, positions)
        back = torch.argsort(flat)
        return [state[back] for state in states]

    def _run(
        self, read: Tensor, layout: RaggedLayout, options: dict[str, bool], positions: Tensor | None = None
    ) -> list[Tensor]:
        """`read`: token ids [S] or vectors [S, H]."""
        if "use_cache" in self._accepts:
            options = {**options, "use_cache": False}
        bias = None if self.soft_mask is None else self.soft_mask.bias
        biased: dict[str, Any] = {} if bias is None else {"bias": bias}
        if positions is not None:
            positions = positions.to(read.device, non_blocking=True) + self._first_position
        if self._kernel == "padded":
            placed = {} if self.soft_mask is None else {"layout": layout}
            return padded_states(self.hf_model, read, layout, {**options, **placed, **biased}, positions)
        if positions is None:
            positions = layout.positions(read.device) + self._first_position
        output = self.hf_model(
            **{"input_ids" if read.ndim == 1 else "inputs_embeds": read.unsqueeze(0)},
            # All ones, so that transformers does not take restarting positions for its own kind of packing.
            attention_mask=torch.ones(1, layout.num_tokens, dtype=torch.long, device=read.device),
            position_ids=positions.unsqueeze(0),
            layout=layout,
            **options,
            **biased,
        )
        states = output.hidden_states if options.get("output_hidden_states") else [output.last_hidden_state]
        found = [state.squeeze(0) for state in states]
        if options.get("output_router_logits"):
            found.append(routing_weights(output.router_logits))
        return found

    def _grow(self, quantise: Mapping[str, Any] | None) -> None:
        if (quantise or {}).get("embeddings"):
            raise ConfigError(
                "backbone.quantise.embeddings=true: rows of backbone.new_tokens are not rounded. Set it to false, or drop the "
                "tokens."
            )
        tokenizer = load_tokenizer(self.name, self.hub)
        read = self.weights == "pretrained"
        add_rows(self.hf_model, tokenizer, self.new_tokens, name=self.name, read=read)

    def _turn(self, attention: Direction | Literal["soft"] | None) -> None:
        """Sets the direction of a decoder. Whether it took is for `_prove` to see."""
        if attention is None:
            return
        decoder = any(getattr(module, "is_causal", False) for module in self.hf_model.modules())
        if attention in ("causal", "soft") and not decoder:
            raise ConfigError(
                f"backbone.attention: {attention} was asked for, but {self.name} ({self.config.model_type}) is an encoder: "
                "its attention is bidirectional. Leave it null or use a decoder."
            )
        if decoder:
            self.config.is_causal = attention == "causal"

    # -- which kernel, and the proofs -----------------------------------------------------------------------------

    def _lacks_for_ragged(self) -> str | None:
        """What the model's class lacks for the ragged kernel, if anything."""
        if not self.hf_model._supports_attention_backend:
            return "its class does not use transformers' attention interface"
        if "position_ids" not in self._accepts:
            return "it takes no position ids, so positions cannot restart with each text"
        return None

    def _take_ragged(self, reason_against: str | None) -> None:
        if reason_against is None:
            self._use("ragged")
            return
        self._use("padded")
        message = f"backbone.kernel: {self.name} ({self.config.model_type}) cannot run ragged: {reason_against}."
        if self._asked == "ragged":
            raise ConfigError(f"{message} Use backbone.kernel=auto or padded.")
        log.warning(
            "%s Texts are padded inside length-sorted chunks instead: the same result, somewhat slower.", message
        )

    def _use(self, kernel: Literal["ragged", "padded"]) -> None:
        self._kernel = kernel
        ragged_kernel.register()
        padded = self._padded_attention if self.soft_mask is None else ragged_kernel.BIASED
        wanted = ragged_kernel.KERNEL if kernel == "ragged" else padded
        if self.config._attn_implementation != wanted:
            self.hf_model.set_attn_implementation(wanted)

    @torch.no_grad()
    def _prove(self, device: torch.device) -> None:
        """Ragged states equal padded ones, and attention looks the way it was asked to, on this kind of device."""
        if device.type == "meta":
            return
        training = self.hf_model.training
        made = 0.0 if self.soft_mask is None else self.soft_mask.step
        self.hf_model.eval()
        try:
            if self._kernel == "ragged":
                self._set_mask(0.5)  # neither of the two that there would be without it
                self._take_ragged(self._parity(device))
            vocabulary = self.config.vocab_size
            for share, expected in self._directions():
                self._set_mask(share)
                seen = observed_direction(lambda tokens: self._states(tokens.to(device))[-1], vocabulary)
                self._refuse_other(seen, expected, device)
        finally:
            self.hf_model.train(training)
            if self.soft_mask is not None:
                self.soft_mask.step = made
        self.direction = seen
        self._proved.add(device.type)
        said = seen if self.soft_mask is None else f"soft ({self.soft_mask.steps:,} steps from causal to bidirectional)"
        log.info("backbone %s: %s attention, %s kernel on %s", self.name, said, self._kernel, device.type)

    def _directions(self) -> list[tuple[float, Direction | None]]:
        """What is to be seen at which share of the opening of a soft mask; the last is how the model ends."""
        if self.soft_mask is not None:
            return [(0.0, "causal"), (1.0, "bidirectional")]
        return [(1.0, None if self._expected == "soft" else self._expected)]

    def _set_mask(self, share: float) -> None:
        if self.soft_mask is not None:
            self.soft_mask.step = share * self.soft_mask.steps

    def _refuse_other(self, seen: Direction, expected: Direction | None, device: torch.device) -> None:
        if expected is None or seen == expected:
            return
        asked = expected if self.soft_mask is None else f"soft, and so {expected} at one end,"
        raise TrainingError(
            f"backbone.attention: {asked} was asked for, but {self.name} behaves {seen} on {device.type} "
            f"({self._kernel} kernel): changing the last token "
            f"{'moved' if seen == 'bidirectional' else 'did not move'} the first hidden state. "
            "Use another backbone.attention, or a version of transformers that honours config.is_causal."
        )

    def _parity(self, device: torch.device) -> str | None:
        """Why ragged states are not those of the padded model, if they are not."""
        tokens = parity_tokens(self.config.vocab_size, avoid=self.config.pad_token_id).to(device)
        self._use("padded")
        reference = self._states(tokens)[-1]
        self._use("ragged")
        try:
            difference = disagreement(self._states(tokens)[-1], reference)
        except ragged_kernel.UnsupportedByRaggedKernel as unsupported:
            return str(unsupported)
        if not difference <= self._tolerance(device):  # not ">": NaN is no agreement
            return f"its states differ from the padded ones by {difference:.1e} of the largest"
        return None

    def _tolerance(self, device: torch.device) -> float:
        if torch.is_autocast_enabled(device.type):
            return tolerance(torch.get_autocast_dtype(device.type))
        return tolerance(self.hf_model.dtype)


def _soft_mask(attention: str | None, settings: Mapping[str, Any] | None) -> SoftMask | None:
    if (attention == "soft") != (settings is not None):
        raise ConfigError(
            f"backbone.soft_mask={settings}, with backbone.attention={attention}: a soft mask needs both, "
            "such as attention=soft soft_mask.steps=1000, and any other attention neither."
        )
    return None if settings is None else _keys_of("soft_mask", SoftMask, settings)


def _keys_of(key: str, kind: Callable[..., Settings], settings: Mapping[str, Any]) -> Settings:
    """`kind` from a mapping of the config. Raises ConfigError for a key that it does not have, and for one that it asks for."""
    known = inspect.signature(kind).parameters
    needed = [name for name, parameter in known.items() if parameter.default is parameter.empty]
    if not isinstance(settings, Mapping) or not set(needed) <= set(settings) <= set(known):
        raise ConfigError(
            f"backbone.{key}: expected keys out of {', '.join(known)}{f', among them {needed[0]}' if needed else ''}; got "
            f"{dict(settings) if isinstance(settings, Mapping) else settings!r}."
        )
    return kind(**settings)


def _refuse_unknown(key: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{key}: expected one of {', '.join(map(str, known))}, got {value!r}.")
