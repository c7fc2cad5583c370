"""Where position ids start. RoBERTa and its kin number tokens from `padding_idx + 1`, everybody else from 0."""

from __future__ import annotations

from torch import nn


def first_position(model: nn.Module) -> int:
    """The position id of a text's first token."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            padding_idx: int = getattr(module, "padding_idx")  # noqa: B009  (nn.Module's attributes have no type)
            return padding_idx + 1
    return 0
