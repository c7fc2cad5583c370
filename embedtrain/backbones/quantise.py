"""Training for quantised weights: layers compute with their weights rounded to a grid, and learn as if they did not.

Each row of a weight is cut into blocks of B numbers with one scale d, kept in half precision:

    4 bits    d = m / -8, m the number of largest size      q = min(7, floor(w / d + 1/2))      levels -8 .. 7
    8 bits    d = max |w| / 127                              q = w / d, rounded                  levels -127 .. 127

    W' = half(d) q        dL/dW = dL/dW'

With B = 32 these are Q4_0 and Q8_0 of ggml, formats that EmbeddingGemma (arXiv:2509.20354) was trained for. The gradient passes
straight through the rounding (arXiv:1308.3432), to weights in full precision that go on as before. Rounding what is rounded
changes nothing, so a quantiser of the format loses nothing of the exported weights.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from embedtrain.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Quantise:
    """The keys of `backbone.quantise`."""

    bits: int = 4  # 4 or 8
    block: int | None = 32  # numbers with one scale; None: a whole row, which is one output
    embeddings: bool = False  # the table of input embeddings too
    others: Mapping[str, int] = field(default_factory=dict)  # pattern in the name of a layer -> its bits

    def __post_init__(self) -> None:
        for key, bits in (("bits", self.bits), *((f"others.{pattern}", n) for pattern, n in self.others.items())):
            if bits not in (4, 8):
                raise ConfigError(f"backbone.quantise.{key}={bits!r}: expected 4 or 8.")
        if self.block is not None and (not isinstance(self.block, int) or self.block < 2):
            raise ConfigError(
                f"backbone.quantise.block={self.block!r}: expected the numbers that share a scale, such as 32, or null for a row."
            )

    def bits_of(self, name: str) -> int:
        return next((bits for pattern, bits in self.others.items() if re.search(pattern, name)), self.bits)


@dataclass(frozen=True)
class Grid:
    """Of one layer."""

    bits: int
    block: int | None

    def round(self, weight: Tensor) -> Tensor:
        """`weight` [..., n] on its grid, in its own type; the gradient passes through."""
        return _Rounded.apply(weight, self.bits, self.block)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, bits: int, block: int | None) -> Tensor:
        w = weight.float().unflatten(-1, (-1, block or weight.shape[-1]))
        if bits == 4:
            d = w.gather(-1, w.abs().argmax(-1, keepdim=True)) / -8
            q = (w * _inverse(d) + 8.5).floor().clamp(max=15) - 8
        else:
            d = w.abs().amax(-1, keepdim=True) / 127
            ratio = w * _inverse(d)
            q = ratio.trunc()
            q += ratio.sign() * ((ratio - q).abs() >= 0.5)  # halves away from zero, as C rounds
        return (d.half().float() * q).flatten(-2).to(weight.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None, None


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, 0.0, 1 / d)


class QuantisedLinear(nn.Linear):
    grid: Grid

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.grid.round(self.weight), self.bias)


class QuantisedEmbedding(nn.Embedding):
    grid: Grid

    def forward(self, input: Tensor) -> Tensor:
        return self.grid.round(super().forward(input))  # blocks lie within rows: those that are read are enough


def quantise_layers(model: PreTrainedModel, settings: Quantise, name: str) -> None:
    """Every linear layer of `model` computes with rounded weights from here on. Names and weights stay what they are.

    Raises ConfigError where blocks do not fit into a row, for a pattern that no layer matches, and where there are no layers.
    """
    layers: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not layers:
        raise ConfigError(f"backbone.quantise: {name} has no linear layers.")
    if settings.embeddings:
        table = model.get_input_embeddings()
        layers |= {n: m for n, m in model.named_modules() if m is table}
    unused = [pattern for pattern in settings.others if not any(re.search(pattern, n) for n in layers)]
    if unused:
        raise ConfigError(
            f"backbone.quantise.others: no layer of {name} has a name that matches {unused[0]!r}. Names look like: "
            f"{', '.join(list(layers)[:3])}, ..."
        )
    for layer, module in layers.items():
        weight: Tensor = module.weight  # type: ignore[assignment]
        if settings.block is not None and weight.shape[-1] % settings.block:
            raise ConfigError(
                f"backbone.quantise.block={settings.block}: {layer} of {name} has rows of {weight.shape[-1]} numbers, which "
                "is no multiple of it."
            )
        module.__class__ = _quantised(type(module))
        module.grid = Grid(settings.bits_of(layer), settings.block)  # type: ignore[assignment]
    rounded = sum(module.weight.numel() for module in layers.values())  # type: ignore[operator,misc]
    log.info(
        "backbone %s: %d layers with %.1f%% of its weights compute with rounded ones",
        *(name, len(layers), 100 * rounded / sum(p.numel() for p in model.parameters())),
    )


def _quantised(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind` with its plain class replaced: what a family adds to it (a scale of embeddings) stays around the rounding."""
    ours = QuantisedLinear if issubclass(kind, nn.Linear) else QuantisedEmbedding
    return ours if kind in (nn.Linear, nn.Embedding) else type(f"Quantised{kind.__name__}", (kind, ours), {})


@torch.no_grad()
def rounded_weights(model: nn.Module) -> dict[str, Tensor]:
    """By its name in the state dict, each weight that `model` rounds, rounded."""
    return {
        f"{name}.weight": module.grid.round(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, QuantisedLinear | QuantisedEmbedding)
    }


def refuse_adapters(lora: Mapping[str, Any] | None) -> None:
    """Raises ConfigError for adapters beside rounded weights."""
    if lora is not None:
        raise ConfigError(
            "backbone.quantise and backbone.lora: weights with adapters added to them would lie on no grid. Train all weights, "
            "or merge the adapters first and train on."
        )
