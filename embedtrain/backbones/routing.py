"""The routers of a mixture of experts: what each token was sent to, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def routers(model: nn.Module) -> list[nn.Module]:
    """In the order of the layers; none for a model without experts. transformers names the class after its work."""
    return [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]


def num_routes(model: nn.Module) -> int:
    """Experts of all layers, R."""
    return sum(len(weight) for module in routers(model) if isinstance(weight := module.weight, Tensor))


def routing_weights(logits: Sequence[Tensor]) -> Tensor:
    """Softmax over the experts of each layer, all layers in a row: L times [S, X] -> [S, R]."""
    return torch.cat([layer.float().softmax(dim=-1) for layer in logits], dim=-1)
