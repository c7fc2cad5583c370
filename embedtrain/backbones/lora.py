"""LoRA through peft: adapters inside the model, and the plain model that they amount to.

Adapters are injected in place, so the model keeps its class and its forward. Merging never touches the weights that
train: W + scale B A is computed beside them, so exporting in the middle of a run changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from embedtrain.errors import ConfigError

_ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The keys of `backbone.lora`."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None  # None: every linear layer of the backbone


def add_adapters(model: PreTrainedModel, lora: Lora) -> None:
    """Puts adapters in place and freezes all else but rows of new tokens. Adapters are fp32 and begin as the identity."""
    targets = "all-linear" if lora.target_modules is None else list(lora.target_modules)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    try:
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    except ValueError as error:
        raise ConfigError(
            f"backbone.lora.target_modules: {lora.target_modules} does not fit this model: {error}"
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.endswith(".new_rows"))
        if "lora_" in name:
            parameter.data = parameter.data.float()


def has_adapters(model: nn.Module) -> bool:
    return any(isinstance(module, LoraLayer) for module in model.modules())


@torch.no_grad()
def merged_model(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model with every adapter added to its layer's weight. What no adapter touches is shared, not copied."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    merged = copy.deepcopy(model, shared)  # the memo keeps every tensor: new modules around the same weights
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoraLayer):
            layer = module.get_base_layer()
            delta = module.get_delta_weight(_ADAPTER)  # type: ignore[attr-defined]
            weight = (layer.weight.float() + delta.float()).to(layer.weight.dtype)
            layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(merged.get_submodule(parent), leaf, layer)
    return merged
