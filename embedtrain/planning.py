"""What a run would do, without doing it: parameters, negatives, steps, tokens; what that costs: outlay.py. No weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from embedtrain.assemble import build_encoder, build_sources
from embedtrain.backbones.soft_mask import refuse_unfinished
from embedtrain.config.build import build
from embedtrain.config.models import with_models
from embedtrain.config.rules import auxiliary_of, negatives_read, uses_in_batch_negatives
from embedtrain.data.describe import describe_parts, equal_parts
from embedtrain.data.lengths import check_lengths
from embedtrain.data.mixture import Mixture
from embedtrain.data.outlook import Pool, ToMine, pools_of, some_rows
from embedtrain.data.sampling import Sampler, check_slices, refuse_small_batches, softmaxes
from embedtrain.encoder import Encoder
from embedtrain.errors import EmbedtrainError, MissingModelError
from embedtrain.losses.fit import fit, refuse_bare_rows
from embedtrain.outlay import (
    Hardware,
    Outlay,
    estimate_memory,
    flops_per_step,
    outlay,
    smallest_that_fits,
    tokens_in_front,
)
from embedtrain.pinned import pinned, stand_in
from embedtrain.sharding import layers_of
from embedtrain.teachers.spread import refuse_squashed_rows
from embedtrain.types import Teacher

_SOURCES_SHOWN = 40  # a split table may have hundreds
_PUBLISHED = ("parameters", "embedding_dim")


@dataclass(frozen=True)
class Parameters:
    """Of encoder and loss together."""

    total: int
    merged: int  # once adapters are added to the weights that they adapt
    trainable: int
    bytes: int
    bytes_outside: int  # of those, what is outside of layers: embeddings and heads
    embedding_dim: int
    layers: int  # of a bridge: those of both models, in layers of the width of the second
    hidden_size: int
    inner_size: int
    multiplied: int  # weights that every token is multiplied with: all but rows of embedding tables
    multiplied_trainable: int

    @property
    def trainable_share(self) -> float:
        return self.trainable / self.total


@dataclass(frozen=True)
class Negatives:
    """What one query is contrasted with, duplicates not counted out."""

    hard: float
    in_batch: float
    cross_device: float

    @property
    def total(self) -> float:
        return self.hard + self.in_batch + self.cross_device


@dataclass(frozen=True)
class SourcePlan:
    """Of the steps whose queries are of one source."""

    rows: int
    steps_per_epoch: int
    queries_per_step: int
    negatives: Negatives | None
    tokens_per_step: int  # at most

    def line(self) -> str:
        contrast = "" if self.negatives is None else f", {self.negatives.total:,.6g} negatives per query"
        return (
            f"{self.steps_per_epoch:,} steps per epoch of {self.queries_per_step:,} queries{contrast}, at most "
            f"{self.tokens_per_step:,} tokens per step"
        )


@dataclass(frozen=True)
class Published:
    """What a publication says of a model, beside what ours has."""

    parameters: float | None
    embedding_dim: int | None

    def line(self, own: Parameters) -> str:
        said = []
        if self.parameters is not None:
            said.append(f"{self.parameters:,.0f} parameters ({own.merged / self.parameters - 1:+.1%} here)")
        if self.embedding_dim is not None:
            here = "" if own.embedding_dim == self.embedding_dim else f" ({own.embedding_dim} here)"
            said.append(f"{self.embedding_dim} dimensions{here}")
        return ", ".join(said)


@dataclass(frozen=True)
class Plan:
    """The plan of a run on `world` ranks. What could not be found out is None and has its reason in `unknown`.

    Where sources differ, `negatives` are the mean over the queries of an epoch, and `tokens_per_step` are the most of any.
    """

    world: int
    queries_per_step: int  # where a source does not say its own
    parameters: Parameters | None
    negatives: Negatives | None  # None: nothing is contrasted
    rows: int | None
    steps_per_epoch: int | None
    steps: int | None
    tokens_per_step: int  # at most
    memory: dict[str, int] | None  # bytes per device by part
    published: Published | None = None  # what the recipe's publication says of the same model
    outlay: Outlay | None = None
    sources: dict[str, SourcePlan] = field(default_factory=dict)  # where batches are of one source, each
    parts: str | None = None  # where batches are of some of the sources, of how many
    neighbourhoods: str | None = None  # of what batches are neighbourhoods, and how large those are
    unknown: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        known = asdict(self)
        if self.negatives is not None:
            known["negatives"]["total"] = self.negatives.total
        for name, source in self.sources.items():
            if source.negatives is not None:
                known["sources"][name]["negatives"]["total"] = source.negatives.total
        if self.parameters is not None:
            known["parameters"]["trainable_share"] = self.parameters.trainable_share
        if self.memory is not None:
            known["memory"]["total"] = sum(self.memory.values())
        return known

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        text = [f"devices            {self.world}"]
        if self.parameters is not None:
            p = self.parameters
            share = "all trained" if p.trainable == p.total else f"{p.trainable:,} trained ({p.trainable_share:.2%})"
            text.append(f"parameters         {p.total:,}, {share}")
            text.append(f"embedding          {p.embedding_dim} dimensions")
            if self.published is not None:
                text.append(f"published          {self.published.line(p)}")
        text.append(f"queries per step   {self.queries_per_step:,}")
        n = self.negatives
        if n is not None:
            text.append(
                f"negatives          {n.total:,.6g} per query: {n.hard:,.6g} hard + {n.in_batch:,.6g} in-batch + "
                f"{n.cross_device:,.6g} cross-device"
            )
        if self.steps is not None:
            epoch = (
                "" if self.steps_per_epoch is None else f", {self.steps_per_epoch:,} per epoch of {self.rows:,} rows"
            )
            text.append(f"steps              {self.steps:,}{epoch}")
        text.append(f"tokens per step    at most {self.tokens_per_step:,}")
        if len(self.sources) > 1:
            shown = list(self.sources.items())[:_SOURCES_SHOWN]
            text += [f"  {name:<16} {source.line()}" for name, source in shown]
            if len(shown) < len(self.sources):
                text.append(f"  and {len(self.sources) - len(shown)} more sources: see output=json")
        if self.parts is not None:
            text.append(f"sources            {self.parts}")
        if self.neighbourhoods is not None:
            text.append(f"neighbourhoods     {self.neighbourhoods}")
        if self.memory is not None:
            parts = " + ".join(f"{name} {_size(count)}" for name, count in self.memory.items())
            text.append(f"memory per device  at most about {_size(sum(self.memory.values()))}: {parts}")
            text.append(f"fits               {self._fits()}")
        if self.outlay is not None:
            text += self.outlay.lines(self.world)
        return text + [f"unknown            {reason}" for reason in self.unknown]

    def _fits(self) -> str:
        """The smallest device that takes it, and whether the one that was named does."""
        assert self.memory is not None
        size = sum(self.memory.values())
        smallest = smallest_that_fits(size)
        said = "no device of launch/hardware.yaml" if smallest is None else f"{smallest.name} and larger"
        named = None if self.outlay is None else self.outlay.hardware
        if named is not None and not named.fits(size):
            said += f"; {named.name} has {named.memory:g} GB: too small. Lower training.chunk_tokens, raise training.cached_share"
            if "gathered" not in self.memory and self.world > 1:
                said += ", or share out the weights: launch=fsdp_8gpu"
        return said


def make_plan(config: dict[str, Any], *, world: int, hardware: Hardware | None = None, sharded: bool = False) -> Plan:
    """The plan of a validated config on `world` ranks. Reads model configurations, the sizes of the data and some rows.

    A model whose configuration ships with the recipes is not looked for anywhere else. Raises ConfigError or DataError where
    the loss does not fit the model, its teachers or the scores of the rows.

    sharded: whether the ranks share out the weights.
    """
    with ExitStack() as stack:

        def stood_in(node: Mapping[str, Any]) -> dict[str, str]:
            known = pinned(node["name"])
            return {"name": stack.enter_context(stand_in(known))} if known is not None and known.config else {}

        return _plan({**config, "backbone": with_models(config["backbone"], stood_in)}, world, hardware, sharded)


def _plan(config: dict[str, Any], world: int, hardware: Hardware | None, sharded: bool) -> Plan:
    training, data, card, unknown = config["training"], config["data"], config["card"], []
    per_step = queries_per_step(training, world)
    parameters: Parameters | None = None
    loss = None if config["objective"] else build_shapes(config["loss"])
    encoder: Encoder | None = None
    try:
        encoder, teachers = model_shapes(config)
    except MissingModelError as error:
        unknown.append(f"parameters and memory: {error}")
    else:
        if loss is not None:
            names = [name for name, node in data["sources"].items() if node is not None]
            fit(loss, encoder, teachers={name: t.dim for name, t in teachers.items()}, sources=names)
        nodes = [config["objective"]] if loss is None else [node["objective"] for node in auxiliary_of(config).values()]
        objectives = [build_shapes(node, encoder=encoder) for node in nodes]
        parameters = count_parameters(encoder, *([] if loss is None else [loss]), *objectives)
    try:
        sources = build_sources(config)
        examples = list(some_rows(sources))
    except EmbedtrainError as error:
        unknown.append(f"{'steps' if training['max_steps'] is None else 'rows, and steps per epoch'}: {error}")
        sampler, pools = None, [unread_pool(config, per_step)]
    else:
        if loss is not None:
            rescored = bool(config["miner"].get("rescorer"))
            refuse_bare_rows(loss, examples, scored=rescored)
            if not rescored:  # what a rescorer gives is looked at in the first batch
                refuse_squashed_rows(loss, examples)
        if encoder is not None:
            check_lengths(sources, encoder.tokenizer, getattr(encoder.backbone, "longest_text", None))
        mixture = Mixture(sources=sources, batching=data["batching"], exponent=data["exponent"])
        sampler = build_sampler(config, mixture, per_step, world)
        refuse_small_batches(sampler, world, training["accumulation_steps"])
        pools = pools_of(sampler, config["encoder"], examples, to_mine(config))
    per_epoch = sampler.steps_per_epoch if sampler else None
    steps = training["max_steps"]
    if steps is None and per_epoch:
        steps = per_epoch * training["epochs"]
    if encoder is not None and steps is not None:
        refuse_unfinished(encoder, steps)
    planned = [plan_pool(config, pool, world) for pool in pools]
    tokens = max(plan.tokens_per_step for plan in planned)
    return Plan(
        world=world,
        queries_per_step=per_step,
        parameters=parameters,
        negatives=mean_negatives(planned),
        rows=sum(plan.rows for plan in planned) or None,
        steps_per_epoch=per_epoch,
        steps=steps,
        tokens_per_step=tokens,
        memory=estimate_memory(
            config, parameters, tokens / training["accumulation_steps"] / world, world if sharded else 1
        )
        if parameters
        else None,
        published=Published(card["parameters"], card["embedding_dim"]) if any(card[k] for k in _PUBLISHED) else None,
        outlay=outlay(flops_per_step(config, parameters, tokens), steps, world, training["mixed_precision"], hardware)
        if parameters
        else None,
        sources={pool.source: plan for pool, plan in zip(pools, planned, strict=True) if pool.source is not None},
        parts=_parts(data["sources_per_batch"], per_step, sampler),
        neighbourhoods=describe_clusters(config, sampler) if sampler else None,
        unknown=unknown,
    )


def _parts(sources_per_batch: int, queries: int, sampler: Sampler | None) -> str | None:
    """Where a batch is of some of the sources, of how many; None where it is of one, or of all."""
    if sources_per_batch == 1:
        return None
    return equal_parts(sources_per_batch, queries) if sampler is None else describe_parts(sampler)


def to_mine(config: Mapping[str, Any]) -> ToMine | None:
    """What the miner of a run adds to each row, at most: of a list that it goes through, what it has at a time."""
    miner, refresh = config["miner"], config["training"]["refresh"]
    if not miner:
        return None
    at_a_time = refresh.get("num_negatives", miner["num_negatives"]) if refresh else miner["num_negatives"]
    return ToMine(at_a_time, miner["own_negatives"] == "keep")


def queries_per_step(training: Mapping[str, Any], world: int) -> int:
    if training["global_batch_size"] is not None:
        return training["global_batch_size"]
    return training["per_device_batch_size"] * world * training["accumulation_steps"]


def model_shapes(config: Mapping[str, Any]) -> tuple[Encoder, dict[str, Teacher]]:
    """The encoder on the meta device, which is shapes without storage, and the teachers without weights."""
    with torch.device("meta"):
        backbone = with_models(config["backbone"], lambda _: {"weights": "random"})
        encoder = build_encoder({**config, "backbone": backbone})
    return encoder, {name: _teacher(name, node) for name, node in config["teachers"].items() if node is not None}


def _teacher(name: str, node: Mapping[str, Any]) -> Any:
    """A teacher without weights. Of one that ships with the recipes its dimension is enough."""
    parts = node.get("parts")
    if parts:
        return SimpleNamespace(dim=sum(_teacher(key, part).dim for key, part in parts.items() if part is not None))
    model = node.get("model") or (node.get("filled_by") or {}).get("model")
    known = pinned(str(model))
    if known is not None and known.embedding_dim is not None:
        return SimpleNamespace(dim=known.embedding_dim)
    return build(node, name=name)


def build_shapes(node: Mapping[str, Any], **runtime: Any) -> nn.Module:
    """A component on the meta device."""
    with torch.device("meta"):
        return build(node, **runtime)


def count_parameters(*parts: nn.Module) -> Parameters:
    """Of an encoder and what it learns from."""
    encoder: Any = parts[0]
    known = list(nn.ModuleList(parts).parameters())
    shapes: list[Any] = [half.config for half in getattr(encoder.backbone, "halves", (encoder.backbone,))]
    shape = shapes[-1]
    tables = {id(m.weight) for part in parts for m in part.modules() if isinstance(m, nn.Embedding)}
    multiplied = [p for p in known if id(p) not in tables]
    return Parameters(
        total=sum(p.numel() for p in known),
        merged=sum(p.numel() for n, p in encoder.named_parameters() if "lora_" not in n and not n.endswith("new_rows")),
        trainable=sum(p.numel() for p in known if p.requires_grad),
        bytes=sum(p.nbytes for p in known),
        bytes_outside=sum(p.nbytes for p in known) - sum(p.nbytes for m in layers_of(encoder) for p in m.parameters()),
        embedding_dim=encoder.embedding_dim,
        layers=round(sum(s.num_hidden_layers * s.hidden_size for s in shapes) / shape.hidden_size),
        hidden_size=shape.hidden_size,
        inner_size=getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size,
        multiplied=sum(p.numel() for p in multiplied),
        multiplied_trainable=sum(p.numel() for p in multiplied if p.requires_grad),
    )


def build_sampler(config: Mapping[str, Any], mixture: Mixture, batch: int, world: int) -> Sampler:
    data = config["data"]
    return Sampler(
        mixture,
        seed=config["run"]["seed"],
        global_batch_size=batch,
        num_positives=data["num_positives"],
        num_negatives=data["num_negatives"],
        drop_last=data["drop_last"],
        sources_per_batch=data["sources_per_batch"],
        softmaxes=softmaxes(config["training"], world),
    )


def describe_clusters(config: Mapping[str, Any], sampler: Sampler) -> str | None:
    """What will be clustered, by what, and into how many clusters; None where batches are drawn at random."""
    if not config["data"]["neighbourhoods"]:
        return None
    names = sampler.mixture.names
    rows = dict(zip(names, sampler.mixture.sizes.tolist(), strict=True))
    for name, size in zip(names, sampler.batch_sizes, strict=True):
        check_slices(name, size, sampler.softmaxes)
    sizes = [size // math.prod(sampler.softmaxes) for size in sampler.batch_sizes]
    return build(config["data"]["neighbourhoods"]).outlook(rows, dict(zip(names, sizes, strict=True)))


def unread_pool(config: Mapping[str, Any], batch: int) -> Pool:
    """What the settings alone say, where no row could be read."""
    data, encoder = config["data"], config["encoder"]
    positives, hard = float(data["num_positives"] or 1), float(data["num_negatives"] or 0)
    tokens = encoder["max_query_length"] + (positives + hard) * encoder["max_document_length"]
    return Pool(None, 0, 0, batch, positives, hard, tokens)


def plan_pool(config: Mapping[str, Any], pool: Pool, world: int) -> SourcePlan:
    # No batch holds more queries than there are.
    fullest = min(pool.queries_per_step, pool.rows or pool.queries_per_step)
    together = fullest / config["training"]["accumulation_steps"]
    texts = 1 + pool.positives + pool.hard
    return SourcePlan(
        rows=pool.rows,
        steps_per_epoch=pool.steps_per_epoch,
        queries_per_step=pool.queries_per_step,
        negatives=count_negatives(config, pool, together, world),
        tokens_per_step=round(pool.queries_per_step * (pool.tokens + texts * tokens_in_front(config["backbone"]))),
    )


def mean_negatives(plans: Sequence[SourcePlan]) -> Negatives | None:
    """Over the queries of an epoch that are contrasted at all."""
    found = [(plan.negatives, plan.steps_per_epoch * plan.queries_per_step) for plan in plans if plan.negatives]
    if len(found) <= 1:
        return found[0][0] if found else None
    total = sum(queries for _, queries in found)
    return Negatives(
        **{
            name: sum(getattr(negatives, name) * queries for negatives, queries in found) / total
            for name in ("hard", "in_batch", "cross_device")
        }
    )


def count_negatives(config: Mapping[str, Any], pool: Pool, queries: float, world: int) -> Negatives | None:
    """Of one query in a micro-batch of `queries`, which `world` ranks share equally. None where nothing is contrasted."""
    if config["objective"] or not (negatives_read(config["loss"], pool.source) or pool.hard):
        return None
    if not uses_in_batch_negatives(config["loss"], pool.source):
        return Negatives(hard=pool.hard, in_batch=0, cross_device=0)
    own, brought = queries / world, pool.positives + pool.hard
    elsewhere = (queries - own) * brought if config["training"]["gather"] else 0.0
    return Negatives(hard=pool.hard, in_batch=(own - 1) * brought, cross_device=elsewhere)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"
