"""Position ids: where they start, and how many there are.

RoBERTa and its kin keep the positions up to `padding_idx` free and start after it, everybody else starts at 0. Learned
positions end somewhere; rotary ones do not.
"""

from __future__ import annotations

from torch import nn

from embedtrain.errors import ConfigError


def first_position(model: nn.Module) -> int:
    """The position id of a text's first token."""
    table = learned_positions(model)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def longest_text(model: nn.Module) -> int | None:
    """The most tokens a text may have: as many as there are learned positions; None where positions are computed."""
    table = learned_positions(model)
    return None if table is None else table.num_embeddings - first_position(model)


def refuse_longer(tokens: int, limit: int | None, model: str) -> None:
    """A ConfigError for a text with more tokens than positions; an accelerator would only report a failed kernel."""
    if limit is not None and tokens > limit:
        raise ConfigError(
            f"encoder.max_query_length, encoder.max_document_length: a text has {tokens} tokens, but {model} knows "
            f"{limit} positions. Set both to at most {limit}."
        )


def learned_positions(model: nn.Module) -> nn.Embedding | None:
    """The table of positions, where they are learned."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module
    return None
