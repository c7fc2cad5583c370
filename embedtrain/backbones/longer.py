"""More learned positions than a model was published with: LongEmbed (arXiv:2404.12096), sec. 3.2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedtrain.backbones.positions import first_position, learned_positions
from embedtrain.errors import ConfigError


@torch.no_grad()
def extend_positions(model: nn.Module, count: int, name: str) -> None:
    """Gives `model` `count` positions, f for each that it had: position i f keeps row i, those between are on the line.

        row(i f + k) = (1 - k / f) * old(i) + k / f * old(i + 1),   0 <= k < f; the last row goes on as it is

    The rows that it had get no gradient, so that they train as little as the model's authors left them; keep weight decay
    off them too (optim.groups). Raises ConfigError for a model without learned positions, and for a count that is no
    multiple of what it has.
    """
    table = learned_positions(model)
    if table is None:
        raise ConfigError(
            f"backbone.positions={count}: {name} computes its positions, so there is no table to extend. Drop it."
        )
    reserved = first_position(model)
    old = table.weight[reserved:]
    factor, rest = divmod(count, len(old))
    if rest or factor < 2:
        raise ConfigError(
            f"backbone.positions={count}: {name} has {len(old)} positions. Expected a multiple, such as {2 * len(old)}."
        )
    k = torch.arange(factor, device=old.device, dtype=old.dtype)[:, None] / factor
    after = torch.cat([old[1:], old[-1:]])
    rows = ((1 - k) * old[:, None] + k * after[:, None]).flatten(0, 1)
    trained = table.weight.requires_grad
    table.weight = nn.Parameter(torch.cat([table.weight[:reserved], rows]), requires_grad=trained)
    table.num_embeddings = reserved + count
    kept = torch.zeros(reserved + count, 1, dtype=torch.bool)
    kept[:reserved] = True
    kept[reserved::factor] = True
    if trained:
        table.weight.register_hook(lambda gradient: gradient.masked_fill(kept.to(gradient.device), 0))
    _widen_buffers(model, reserved + count)
    model.config.max_position_embeddings = reserved + count  # type: ignore[union-attr]


def _widen_buffers(model: nn.Module, size: int) -> None:
    """Numbers of positions and kinds of token that some models look up by position."""
    for module in model.modules():
        for key, buffer in list(module.named_buffers(recurse=False)):
            if key in ("position_ids", "token_type_ids") and isinstance(buffer, Tensor):
                wide = torch.arange(size, device=buffer.device) if key == "position_ids" else buffer.new_zeros(size)
                module.register_buffer(key, wide.to(buffer.dtype).expand(1, -1), persistent=False)
