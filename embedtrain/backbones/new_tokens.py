"""Tokens that a model was not published with, each with an embedding that trains: marks of queries and of documents.

Their rows are a parameter of their own beside the table, `new_rows`, which stands in for the table's rows of these ids. So they
train where the table is frozen (under LoRA always, else by encoder.train_only=[new_rows, ...]), with an optimizer's state for
these few numbers and not for all of the table. An exported model has them in its table and its tokenizer, and nothing beside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedtrain.errors import ConfigError


class _Grown(nn.Embedding):
    """A table of input embeddings with rows of its own for some ids."""

    new_rows: nn.Parameter  # [n, H], fp32
    new_ids: Tensor  # [n]

    def forward(self, input: Tensor) -> Tensor:
        states = super().forward(input)
        found = input[..., None] == self.new_ids
        rows = F.embedding(found.int().argmax(-1), self.new_rows) * getattr(self, "embed_scale", 1)
        return torch.where(found.any(-1)[..., None], rows.to(states.dtype), states)


def _grown(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind` with rows of its own: what a family does to a table's rows (a scale) it does to these."""
    return type(f"Grown{kind.__name__}", (_Grown, kind), {"plain": kind})


def read_tokens(said: Any) -> dict[str, str | None]:
    """The value of `backbone.new_tokens`. Raises ConfigError for anything but names, each with another token's name or null."""
    if not isinstance(said, Mapping) or not all(
        isinstance(token, str) and token.strip() and (like is None or isinstance(like, str))
        for token, like in said.items()
    ):
        raise ConfigError(
            'backbone.new_tokens: expected tokens and what each starts as, such as {"[BOQ]": null, "[EOQ]": </s>}; got '
            f"{dict(said) if isinstance(said, Mapping) else said!r}."
        )
    return dict(said)


def register(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> PreTrainedTokenizerBase:
    """Makes each of `tokens` one token of `tokenizer`, a special one. In place."""
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    return tokenizer


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Mapping[str, str | None],
    *,
    name: str,
    read: bool,
) -> None:
    """Gives `model` a row for each of `tokens`, which are made tokens of `tokenizer`.

    tokens: by name, the token whose embedding it starts with, or None for the mean of all. One that the tokenizer has already
        keeps its row, and trains by it.
    read: the weights of `model` were read, and are not random or without storage.

    Raises ConfigError for a token to start with that is not there, and for a model whose table is no plain one.
    """
    known = tokenizer.get_vocab()
    for token, like in tokens.items() if read else ():
        if like is not None and like not in known:
            raise ConfigError(
                f"backbone.new_tokens.{token}={like!r}: {name} has no such token to start with. Name one of its tokens, or null "
                "for the mean of all."
            )
    vocabulary = register(tokenizer, tokens).get_vocab()
    ids = [vocabulary[token] for token in tokens]
    table: Any = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ConfigError(f"backbone.new_tokens: {name} has no table of input embeddings to add to.")
    if max(ids) >= table.num_embeddings:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        table = model.get_input_embeddings()
    if read:
        mean = table.weight[sorted(i for i in known.values() if i < len(table.weight))].float().mean(0)
        for (token, like), row in zip(tokens.items(), ids, strict=True):
            if token not in known:
                table.weight[row] = mean if like is None else table.weight[known[like]]
    table.register_buffer("new_ids", torch.tensor(ids), persistent=False)
    table.new_rows = nn.Parameter(table.weight[ids].float().clone())
    table.__class__ = _grown(type(table))


def has_new_rows(model: nn.Module) -> bool:
    return any(isinstance(module, _Grown) for module in model.modules())


@torch.no_grad()
def with_rows(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model with the rows in its table. All other weights are shared, not copied."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    plain = copy.deepcopy(model, shared)
    for table in plain.modules():
        if isinstance(table, _Grown):
            weight = table.weight.index_copy(0, table.new_ids, table.new_rows.to(table.weight.dtype))
            table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
            del table.new_rows, table.new_ids
            table.__class__ = type(table).plain  # type: ignore[attr-defined]
    return plain


@torch.no_grad()
def take_rows(model: nn.Module) -> None:
    """Lets the rows go on from what the table has for their ids, as after weights of a plain model were put into it."""
    for table in model.modules():
        if isinstance(table, _Grown):
            table.new_rows.copy_(table.weight[table.new_ids])


def refuse_adapters_on_the_table(model: PreTrainedModel) -> None:
    """Raises ConfigError where LoRA has taken the place of a table with rows of its own."""
    if not isinstance(model.get_input_embeddings(), _Grown):
        raise ConfigError(
            "backbone.lora.target_modules: adapters on the input embeddings and backbone.new_tokens cannot be together. Leave "
            "the embeddings out: their new rows train by themselves."
        )
