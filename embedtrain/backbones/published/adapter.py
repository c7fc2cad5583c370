"""A LoRA adapter as peft stores it (e5-mistral's `lora/`, RepLLaMA, LLM2Vec, ...): added to the weights of its base model.

    adapter_config.json          base model, rank r, alpha, and which kind of LoRA
    adapter_model.safetensors    base_model.model.<path of the layer>.lora_A.weight [r, in], .lora_B.weight [out, r]

    W' = W + scale B A      scale: alpha / r, or alpha / sqrt(r) where `use_rslora` says so (arXiv:2312.03732)

The path begins with `model.` where the adapter was trained on a whole language model. What is more than this (DoRA, biases,
whole layers saved beside, other kinds of peft) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import cached_file

from embedtrain.backbones.published.body import keys_of
from embedtrain.errors import CheckpointError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
# Of adapter_config.json, what would change the formula above, and the values that leave it as it is.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None, []),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """One folder, by what its config says."""

    name: str
    base: str  # folder or hub name
    base_revision: str | None
    scale: float
    hub: Mapping[str, Any]

    @torch.no_grad()
    def add_to(self, model: nn.Module) -> None:
        """Adds scale B A to the weights of the layers that it names, in fp32.

        Raises CheckpointError for a layer that the model has not, a half without the other, or shapes that do not fit.
        """
        halves, foreign = self._halves()
        layers = {path: _find(model, path) for path in halves}
        unexpected = [*foreign, *(path for path, layer in layers.items() if layer is None)]
        missing = [f"{path}.lora_{'B' if 'A' in own else 'A'}" for path, own in halves.items() if len(own) < 2]
        if unexpected or missing or not halves:
            keys = keys_of(missing=missing or ([] if halves else ["every lora_A and lora_B"]), unexpected=unexpected)
            raise CheckpointError(f"{self.name}/{_WEIGHTS} does not fit {self.base}. {keys}")
        for path, layer in layers.items():
            a, b = halves[path]["A"], halves[path]["B"]
            weight: Tensor = layer.weight  # type: ignore[union-attr]
            if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
                raise CheckpointError(
                    f"{self.name}/{_WEIGHTS}: {path} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; the layer of "
                    f"{self.base} is {list(weight.shape)}."
                )
            weight += (self.scale * (b.float() @ a.float())).to(weight)

    def has(self, file: str) -> bool:
        return self._file(file) is not None

    def _file(self, name: str) -> str | None:
        return cached_file(self.name, name, revision=self.hub["revision"], _raise_exceptions_for_missing_entries=False)

    def _halves(self) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
        """({layer: {"A": ..., "B": ...}}, keys that are neither)."""
        file = self._file(_WEIGHTS)
        if file is None:
            raise CheckpointError(
                f"{self.name}: {_WEIGHTS} is missing. Adapters in other formats are pickles, not read."
            )
        halves: dict[str, dict[str, Tensor]] = {}
        foreign = []
        for key, tensor in load_file(file).items():
            match = _KEY.fullmatch(key)
            if match is None:
                foreign.append(key)
            else:
                halves.setdefault(match["layer"], {})[match["half"]] = tensor
        return halves, foreign


def read_adapter(name: str, hub: Mapping[str, Any]) -> Adapter | None:
    """The adapter in a folder or under a hub name; None where there is none.

    Raises CheckpointError for one that is more than LoRA, or does not say what it belongs to.
    """
    try:
        file = cached_file(name, _CONFIG, revision=hub["revision"], _raise_exceptions_for_missing_entries=False)
    except OSError:  # neither a folder nor a name: said where its config.json is read
        return None
    if file is None:
        return None
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(
            f"{name} holds an adapter without its base model: {_CONFIG} has no base_model_name_or_path. Merge the adapter "
            "first, or name the base model there."
        )
    other = {key: config[key] for key, plain in _PLAIN.items() if key in config and config[key] not in plain}
    if other:
        raise CheckpointError(f"{name}/{_CONFIG} has {other}: more than plain LoRA cannot be read. Merge it with peft.")
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return Adapter(name=name, base=base, base_revision=config.get("revision"), scale=scale, hub=hub)


def _find(model: nn.Module, path: str) -> nn.Linear | None:
    """The linear layer at `path`, which may begin with names of what the model was part of: `model.layers.0.mlp.up_proj`."""
    names = path.split(".")
    for start in range(len(names)):
        try:
            layer = model.get_submodule(".".join(names[start:]))
        except AttributeError:
            continue
        return layer if isinstance(layer, nn.Linear) else None
    return None
