"""What is known of a run, for its model card. A field that nobody filled in is a fact nobody has: the card leaves it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedtrain.encoder import Encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """One source of training data."""

    name: str
    rows: int | None = None
    weight: float | None = None  # its share of the mixture, as used


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRecord:
    """One metric before and after training. `interval` bounds the difference after - before (95 %, bootstrap)."""

    evaluator: str
    metric: str
    before: float | None = None
    after: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeRecord:
    """What a merged model was made of, and how."""

    method: str
    models: tuple[str, ...]  # as they were named
    base: str | None = None
    published: tuple[str, ...] = ()  # those of all these that are names on the hub
    parameters: Mapping[str, object] = field(default_factory=dict)  # a list has one value for each model


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The facts of one run. Everything is optional; `model_card` writes what is there."""

    name: str | None = None  # of the model, the card's title
    base_model: str | None = None  # hub name or folder
    license: str | None = None  # identifier of the hub: "apache-2.0"
    language: tuple[str, ...] = ()  # ISO codes
    datasets: tuple[str, ...] = ()  # hub names of data sets, where the sources have any
    # The model
    architecture: str | None = None  # "BertModel"
    attention: str | None = None  # "bidirectional" | "causal"
    pooling: str | None = None
    pool_prompt: bool | None = None
    normalize: bool | None = None
    embedding_dim: int | None = None
    max_query_length: int | None = None  # tokens
    max_document_length: int | None = None  # tokens
    num_parameters: int | None = None
    num_trainable: int | None = None
    similarity: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)  # role -> prefix, as a user of the folder gets it
    # The training, or the merge
    merge: MergeRecord | None = None
    sources: tuple[SourceRecord, ...] = ()
    loss: str | None = None  # one line
    negatives: str | None = None  # one line: positives, hard, in-batch and cross-device negatives per query
    hyper_parameters: Mapping[str, object] = field(default_factory=dict)
    seconds: float | None = None
    command: str | None = None
    environment: Mapping[str, object] = field(default_factory=dict)
    # What came of it
    metrics: tuple[MetricRecord, ...] = ()
    limits: tuple[str, ...] = ()  # sentences: what was not measured, what the model is not for


def with_facts_of(encoder: Encoder, record: RunRecord, *, similarity: str | None = None) -> RunRecord:
    """`record`, where it is silent about the model filled in by the encoder itself."""
    tokenizer = encoder.tokenizer
    model = encoder.backbone.hf_model
    known = RunRecord(
        base_model=encoder.backbone.name,  # type: ignore[arg-type]
        architecture=getattr(encoder.backbone, "architecture", type(model).__name__),
        attention=encoder.backbone.direction,  # type: ignore[arg-type]
        pooling=type(encoder.pooling).__name__.removesuffix("Pooling"),
        pool_prompt=tokenizer.prompts.pool_prompt if any(tokenizer.prompts.templates.values()) else None,
        normalize=encoder.normalize,
        embedding_dim=encoder.embedding_dim,
        max_query_length=tokenizer.max_length["query"],
        max_document_length=tokenizer.max_length["document"],
        num_parameters=encoder.num_parameters(),
        num_trainable=encoder.num_trainable(),
        similarity=similarity,
        prompts=tokenizer.prompts.exported(),
    )
    missing = {f.name: getattr(known, f.name) for f in fields(known) if getattr(record, f.name) in (None, {}, ())}
    return replace(record, **missing)
