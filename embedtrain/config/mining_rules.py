"""What must hold between the miner, its refresh, and the rest of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embedtrain.config.findings import Finding, Problem, Regret, kind_of


def miner(config: dict[str, Any], world: int) -> Iterator[Finding]:
    """Of a run that trains. `embedtrain mine` asks none of this."""
    node = config["miner"]
    if not node:
        if config["training"]["refresh"]:
            yield Problem(
                "training.refresh: set, and there is no miner that could look again. Choose one, for example "
                "miner=percent_of_positive, or leave it out: training.refresh={}"
            )
        return
    if config["objective"]:
        yield Problem("miner: set, and an objective reads no negatives. Leave it out: miner=null")
    dropping = [f"miner.query_filters.{name}" for name, part in (node.get("query_filters") or {}).items() if part]
    dropping += ["miner.short_rows=drop"] if node.get("short_rows") == "drop" else []
    for key in dropping:
        yield Problem(
            f"{key}: leaves rows out, which a run whose batches are planned cannot. Do it before: embedtrain mine ... "
            "output=<folder>, and train on the rows that it writes."
        )
    if config["data"]["num_negatives"] == 0:
        yield Problem(
            f"data.num_negatives=0: mined negatives would never be read. Set it to null, or up to {node.get('num_negatives')}."
        )


def refresh(config: dict[str, Any], world: int) -> Iterator[Finding]:
    node, again = config["miner"], config["training"]["refresh"]
    if not node or not again:
        return
    if kind_of(again) == "Triggered":
        listed, at_a_time = node.get("num_negatives"), again.get("num_negatives")
        if isinstance(listed, int) and isinstance(at_a_time, int) and listed <= at_a_time:
            yield Problem(
                f"miner.num_negatives={listed}: the list of a row, of which it has "
                f"training.refresh.num_negatives={at_a_time} at a time. Make the list several times as long."
            )
    if kind_of(again) != "Periodic":
        return
    if node.get("model") is not None:
        yield Problem(
            f"training.refresh: miner.model={node['model']} does not learn in this run, so it would find the same again. Set "
            "miner.model to null to mine by the encoder that trains, or leave refresh out."
        )
    elif kind_of(node.get("search")) == "BM25":
        yield Problem(
            "training.refresh: BM25 finds the same whatever was learned. Leave refresh out, or search by vectors."
        )
    if again.get("lag") == 0 and again.get("device") is not None:
        yield Regret(
            f"training.refresh.device={again['device']}: not used, since with lag=0 the ranks mine on their own devices."
        )


MINING_RULES = (miner, refresh)
