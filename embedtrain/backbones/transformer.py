"""Any transformers encoder or decoder as a backbone: ragged tokens in, hidden states [S, H] out.

Two paths give the same states. *Ragged*: all texts as one flat run, positions restarting, attention by
`attention.py`; no token of padding is ever computed. *Padded*: the model as its authors wrote it. Which one runs is
settled by behaviour: the first forward on each kind of device compares them on a few texts, and proves the direction of
attention through the very kernel in use.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from embedtrain.backbones import attention as ragged_kernel
from embedtrain.backbones.direction import Direction, observed_direction
from embedtrain.backbones.locate import locate
from embedtrain.backbones.lora import Lora, add_adapters, has_adapters, merged_model
from embedtrain.backbones.padded import padded_states
from embedtrain.backbones.parity import disagreement, parity_tokens, tolerance
from embedtrain.backbones.positions import first_position
from embedtrain.backbones.ragged import RaggedLayout
from embedtrain.backbones.random_bits import replace_dropout
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.types import RaggedTokens

log = logging.getLogger(__name__)

Kernel = Literal["auto", "ragged", "padded"]


class TransformerBackbone(nn.Module):
    """A transformers model by name or folder.

    name: a folder, a name on the model hub, or `package://<package>/<folder>` inside an installed Python package.
    weights: "pretrained", or "random" to start from the configuration alone (also on the meta device).
    attention: "bidirectional" or "causal"; None keeps the model's own. A decoder made bidirectional says so in its
        config (`is_causal: false`), so the exported model stays so elsewhere.
    dtype: of frozen weights, "float32" or "bfloat16". Weights that train are always fp32; compute in bf16 by
        `training.mixed_precision`.
    lora: None trains every weight; else the keys of `Lora`.
    gradient_checkpointing: recompute each layer in the backward, for memory.
    kernel: "ragged" or "padded" states; "auto" takes ragged where it is exact and says in the log what it took.
    dropout: None keeps the model's probabilities; else all of them.
    """

    def __init__(
        self,
        *,
        name: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        attention: Direction | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        kernel: Kernel = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        _refuse_unknown("backbone.weights", weights, ("pretrained", "random"))
        _refuse_unknown("backbone.attention", attention, (None, "bidirectional", "causal"))
        _refuse_unknown("backbone.dtype", dtype, ("float32", "bfloat16"))
        _refuse_unknown("backbone.kernel", kernel, ("auto", "ragged", "padded"))
        if dtype != "float32" and lora is None:
            raise ConfigError(
                f"backbone.dtype: {dtype} is for frozen weights, but without backbone.lora every weight trains, and "
                "small updates are lost in it. Use float32 here and training.mixed_precision=bf16."
            )
        self.name = name = locate(name)
        self._hub = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = _load_config(name, self._hub)
        if dropout is not None:
            _set_dropout(config, dropout)
        self.hf_model = _load_model(name, config, weights, getattr(torch, dtype), self._hub)
        self.hidden_size: int = self.config.hidden_size
        self._turn(attention)
        self._expected = attention
        self.direction: Direction | None = None  # as observed; None on the meta device, where nothing can be
        if lora is not None:
            add_adapters(self.hf_model, Lora(**lora))
        if gradient_checkpointing:
            # The reentrant kind loses gradients of adapters and breaks with two forwards per step.
            self.hf_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.hf_model.enable_input_require_grads()
        replace_dropout(self.hf_model)

        self._accepts = frozenset(inspect.signature(self.hf_model.forward).parameters)
        self._first_position = first_position(self.hf_model)
        self._asked: Kernel = kernel
        self._kernel: Kernel = "padded" if kernel == "padded" else "ragged"
        self._proved: set[str] = set()  # device types on which the kernel and the direction were proved
        if self._reason_against_ragged() is not None:
            self._fall_back(self._reason_against_ragged())
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
        """The tokenizer that came with the model."""
        return AutoTokenizer.from_pretrained(self.name, **self._hub)

    def merged_model(self) -> PreTrainedModel:
        """A plain transformers model with the adapters, if any, added to the weights; for export. Nothing here changes."""
        return merged_model(self.hf_model) if has_adapters(self.hf_model) else self.hf_model

    def forward(self, tokens: RaggedTokens, *, all_layers: bool = False) -> Tensor | list[Tensor]:
        """The last hidden states [S, H]; with `all_layers` a list of them: of the embedding, then of every layer."""
        if tokens.ids.device.type not in self._proved:
            self._prove(tokens.ids.device)
        states = self._states(tokens, all_layers=all_layers)
        return states if all_layers else states[-1]

    def _states(self, tokens: RaggedTokens, *, all_layers: bool = False) -> list[Tensor]:
        layout = RaggedLayout(tuple(tokens.lengths.tolist()))
        if len(layout.groups) == len(set(layout.lengths)):  # as chunks come: equal lengths are neighbours
            return self._run(tokens.ids, layout, all_layers)
        order = torch.argsort(tokens.lengths, descending=True, stable=True)
        grouped = tokens.select(order)
        states = self._run(grouped.ids, RaggedLayout(tuple(grouped.lengths.tolist())), all_layers)
        flat = RaggedTokens(torch.arange(tokens.num_tokens), tokens.offsets, tokens.spans).select(order).ids
        back = torch.argsort(flat).to(tokens.ids.device)
        return [state[back] for state in states]

    def _run(self, ids: Tensor, layout: RaggedLayout, all_layers: bool) -> list[Tensor]:
        options = {"output_hidden_states": True} if all_layers else {}
        if "use_cache" in self._accepts:
            options["use_cache"] = False
        if self._kernel == "padded":
            return padded_states(self.hf_model, ids, layout, options)
        positions = layout.positions(ids.device) + self._first_position
        output = self.hf_model(
            input_ids=ids.unsqueeze(0),
            # All ones, so that transformers does not take restarting positions for its own kind of packing.
            attention_mask=torch.ones(1, ids.numel(), dtype=torch.long, device=ids.device),
            position_ids=positions.unsqueeze(0),
            layout=layout,
            **options,
        )
        states = output.hidden_states if all_layers else [output.last_hidden_state]
        return [state.squeeze(0) for state in states]

    def _turn(self, attention: Direction | None) -> None:
        """Sets the direction of a decoder. Whether it took is for `_prove` to see."""
        if attention is None:
            return
        decoder = any(getattr(module, "is_causal", False) for module in self.hf_model.modules())
        if attention == "causal" and not decoder:
            raise ConfigError(
                f"backbone.attention: causal was asked for, but {self.name} ({self.config.model_type}) is an encoder: "
                "its attention is bidirectional. Leave it null or use a decoder."
            )
        if decoder:
            self.config.is_causal = attention == "causal"

    # -- which kernel, and the proofs -----------------------------------------------------------------------------

    def _reason_against_ragged(self) -> str | None:
        if self._kernel == "padded":
            return None
        if not self.hf_model._supports_attention_backend:
            return "its class does not use transformers' attention interface"
        if "position_ids" not in self._accepts:
            return "it takes no position ids, so positions cannot restart with each text"
        return None

    def _fall_back(self, reason: str | None) -> None:
        message = f"backbone.kernel: {self.name} ({self.config.model_type}) cannot run ragged: {reason}."
        if self._asked == "ragged":
            raise ConfigError(f"{message} Use backbone.kernel=auto or padded.")
        log.warning(
            "%s Texts are padded inside length-sorted chunks instead: the same result, somewhat slower.", message
        )
        self._kernel = "padded"

    @torch.no_grad()
    def _prove(self, device: torch.device) -> None:
        """Ragged states equal padded ones, and attention looks the way it was asked to, on this kind of device."""
        if device.type == "meta":
            return
        training = self.hf_model.training
        self.hf_model.eval()
        try:
            if self._kernel == "ragged":
                self._prove_ragged(device)
            vocabulary = self.config.vocab_size
            seen = observed_direction(lambda tokens: self._states(tokens.to(device))[-1], vocabulary)
        finally:
            self.hf_model.train(training)
        if self._expected is not None and seen != self._expected:
            raise TrainingError(
                f"backbone.attention: {self._expected} was asked for, but {self.name} behaves {seen} on {device.type} "
                f"({self._kernel} kernel): changing the last token "
                f"{'moved' if seen == 'bidirectional' else 'did not move'} the first hidden state. "
                "Use another backbone.attention, or a version of transformers that honours config.is_causal."
            )
        self.direction = seen
        self._proved.add(device.type)
        log.info("backbone %s: %s attention, %s kernel on %s", self.name, seen, self._kernel, device.type)

    def _prove_ragged(self, device: torch.device) -> None:
        tokens = parity_tokens(self.config.vocab_size, avoid=self.config.pad_token_id).to(device)
        original = self.config._attn_implementation
        if original != ragged_kernel.KERNEL:
            self._reference = original
        self.hf_model.set_attn_implementation(self._reference)
        self._kernel = "padded"
        reference = self._states(tokens)[-1]
        ragged_kernel.register()
        self.hf_model.set_attn_implementation(ragged_kernel.KERNEL)
        self._kernel = "ragged"
        reason = None
        try:
            difference = disagreement(self._states(tokens)[-1], reference)
            if not difference <= self._tolerance(device):
                reason = f"its states differ from the padded ones by {difference:.1e} of the largest"
        except ragged_kernel.UnsupportedByRaggedKernel as unsupported:
            reason = str(unsupported)
        if reason is not None:
            self.hf_model.set_attn_implementation(self._reference)
            self._fall_back(reason)

    def _tolerance(self, device: torch.device) -> float:
        if torch.is_autocast_enabled(device.type):
            return tolerance(torch.get_autocast_dtype(device.type))
        return tolerance(self.hf_model.dtype)


def _refuse_unknown(key: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{key}: expected one of {', '.join(map(str, known))}, got {value!r}.")


def _load_config(name: str, hub: Mapping[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(name, **hub)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"backbone.name: {name!r} is no model folder and no model that can be fetched: {error}"
        ) from error


def _load_model(name: str, config: Any, weights: str, dtype: torch.dtype, hub: Mapping[str, Any]) -> PreTrainedModel:
    # A pooler that nobody reads would train on nothing, and data-parallel wrappers wait for its gradient.
    options = {"add_pooling_layer": False} if _has_pooler(config) else {}
    if weights == "random":
        return AutoModel.from_config(config, dtype=dtype, trust_remote_code=hub["trust_remote_code"], **options)
    # transformers' own report calls a pooler that was left out "unexpected", and in a group of ranks it tells that no
    # layer is tensor-parallel; what matters is what the folder lacks.
    reports = logging.getLogger("transformers")
    level = reports.level
    reports.setLevel(logging.ERROR)
    try:
        model, report = AutoModel.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **hub, **options
        )
    finally:
        reports.setLevel(level)
    if report["missing_keys"]:
        log.warning(
            "backbone.name: %s lacks these weights, they start random: %s", name, sorted(report["missing_keys"])
        )
    return model


def _has_pooler(config: Any) -> bool:
    model_class = MODEL_MAPPING.get(type(config), None)
    return isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class).parameters


def _set_dropout(config: Any, probability: float) -> None:
    for key, value in config.to_dict().items():
        is_dropout = "dropout" in key or key.endswith("pdrop")
        if is_dropout and "classifier" not in key and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, probability)
