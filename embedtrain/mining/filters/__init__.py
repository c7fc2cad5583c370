"""What may be a negative, and which queries are worth training on. One filter per file.

    Candidates --filters, in their order--> `kept`, fewer and fewer
    Candidates --query filters--> queries, fewer and fewer

A filter is called for some queries at a time. One that must see everything before (an expensive model that all ranks call
together, a limit on what may be spent) has `prepare` as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from embedtrain.mining.records import Candidates, Filter, MiningData, QueryFilter


@runtime_checkable
class Prepared(Protocol):
    """A filter that is told of all candidates before the first is judged."""

    def prepare(self, data: MiningData, blocks: Sequence[Candidates]) -> None:
        """Every rank calls it once per mining, with all its candidates (also with none), after the filters before it acted.

        Afterwards the filter knows each candidate that is `kept` in a block.
        """
        ...


@runtime_checkable
class Reporting(Protocol):
    """A filter with something to say in the report."""

    def facts(self) -> dict[str, object]:
        """Of the last mining. Whole numbers are of this rank, to be added up over ranks."""
        ...


def apply_filters(filters: Mapping[str, Filter], data: MiningData, blocks: Sequence[Candidates]) -> dict[str, int]:
    """Each filter in its order takes out of `kept`. `blocks`: all candidates of this rank; every rank must call it.

    Returns how many candidates each filter took out that were still there.
    """
    taken = {}
    for name, part in filters.items():
        if isinstance(part, Prepared):
            part.prepare(data, blocks)
        taken[name] = 0
        for block in blocks:
            stays = block.kept & part(block)
            taken[name] += int(block.kept.sum()) - int(stays.sum())
            block.kept = stays
    return taken


def apply_query_filters(
    filters: Mapping[str, QueryFilter], blocks: Sequence[Candidates]
) -> tuple[list[Tensor], dict[str, int]]:
    """For each block which queries stay, [Q] bool, and how many queries each filter took out that were still there."""
    stays = [torch.ones(len(block.queries), dtype=torch.bool) for block in blocks]
    taken = dict.fromkeys(filters, 0)
    for name, part in filters.items():
        for number, block in enumerate(blocks):
            still = stays[number] & part(block)
            taken[name] += int(stays[number].sum()) - int(still.sum())
            stays[number] = still
    return stays, taken
