"""The frame of the configuration: everything the program itself reads, with its type, its default and its unit.

The frame is typed, so an unknown key or a wrong type fails while the config is put together. Components (backbone, pooling,
loss, sources, evaluators, trackers, callbacks) are mappings with a `_target_`; the signature of their class is their
schema, and `validate` checks it. Things that users add or drop are mappings by name, never lists: a list in a recipe
would replace the list below it as a whole.

A `setting` is a field with its one-line meaning and its limits; `validate` reads both.
"""

# `setting` returns a dataclass field; ruff cannot see that from the call.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints


def setting(
    default: Any,
    meaning: str,
    *,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field of the frame. `meaning` says what it does and in which unit; the rest are the values it may take."""
    limits = {"meaning": meaning, "choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=limits)
    return field(default=default, metadata=limits)


def _part(kind: type) -> Any:
    return field(default_factory=kind)


@dataclass
class RunConfig:
    """One execution: its name, its directory, its seed."""

    name: str = setting("unnamed", "Name of the run; names its directory and its tracker entries.")
    dir: str = setting("runs/${run.name}", "Directory of the run, relative to where the command is started.")
    seed: int = setting(0, "Seed of batches, dropout, new weights and the bootstrap.", at_least=0)
    resume: str = setting(
        "auto",
        "auto: go on where the directory's newest checkpoint left off; never: refuse a used directory; must: refuse a new one.",
        choices=("auto", "never", "must"),
    )


@dataclass
class EncoderConfig:
    """What turns pooled states into an embedding, and how much of a text is read."""

    normalize: bool = setting(True, "Scale each embedding to length 1.")
    projection_dim: int | None = setting(
        None, "Size of a linear layer after pooling; null: none. Unit: dimensions.", at_least=1
    )
    max_query_length: int = setting(
        512, "Queries are cut here. Unit: tokens, prompt and special ones counted.", at_least=1
    )
    max_document_length: int = setting(
        512, "Documents are cut here. Unit: tokens, prompt and special ones counted.", at_least=1
    )
    append_eos: bool | None = setting(
        None, "End each text with the end-of-sequence token; null: exactly when pooling is eos."
    )
    query_augmentation: int | None = setting(
        None,
        "Fill queries up to this many tokens with [MASK], as ColBERT does; null: leave them. Unit: tokens.",
        at_least=1,
    )
    attend_to_masks: bool = setting(
        True, "Whether tokens see the masks of query_augmentation; in ColBERT's code and in PyLate none does."
    )
    views: dict[str, Any] = setting(
        {}, "Further embeddings of each text by name, for losses that read several: pooling components."
    )
    train_only: list[str] = setting(
        [], "Patterns searched in parameter names, such as [bias$]: what matches none is frozen; []: all of it trains."
    )


@dataclass
class PromptsConfig:
    """Text put around each text, in training, evaluation and the exported model alike."""

    query: str = setting(
        "", "Put before a query, literally; behind it what follows {text}. {instruction} is the row's own instruction."
    )
    document: str = setting("", "Put before a document, literally; behind it what follows {text}.")
    sources: dict[str, Any] = setting({}, "By source: {query: ..., document: ...} in place of the two above.")
    instructions: bool = setting(
        True, "Whether instructions of rows and sources are read; false: for a model that takes none."
    )
    pool_prompt: bool = setting(True, "Whether the tokens of the prompt take part in pooling.")


@dataclass
class DataConfig:
    """Where pairs come from and how they are put into batches."""

    path: str | None = setting(
        None, "The file or folder that recipe=finetune reads; other recipes name theirs in sources."
    )
    sources: dict[str, Any] = setting({}, "Sources of training rows by name: components of embedtrain.data.sources.")
    batching: str = setting(
        "one_source",
        "one_source: all queries of a batch come from one source; blended: each batch holds all sources in proportion.",
        choices=("one_source", "blended"),
    )
    sources_per_batch: int = setting(
        1, "With one_source: sources that fill a batch, an equal part of each and different ones.", at_least=1
    )
    exponent: float = setting(
        1.0, "A source is drawn in proportion to weight * rows ** exponent; 0 draws all alike.", at_least=0, at_most=1
    )
    num_positives: int | None = setting(1, "Positives taken per query; null: all that the row has.", at_least=1)
    num_negatives: int | None = setting(
        None, "Hard negatives taken per query (K); null: all that the row has.", at_least=0
    )
    neighbourhoods: dict[str, Any] = setting(
        {}, "Component: rows that are alike make a batch; {}: batches are drawn at random."
    )
    drop_last: bool = setting(False, "Leave out the queries that do not fill the last batch of an epoch.")
    num_workers: int = setting(
        1, "Processes per rank that read and tokenize; 0: the training process itself.", at_least=0
    )


@dataclass
class EarlyStopConfig:
    """Stop when the evaluation gets no better."""

    patience: int | None = setting(
        None, "Stop after this many evaluations without a new best; null: never.", at_least=1
    )
    metric: str | None = setting(None, "What must get better, as name/metric; null: evaluation.primary.")


@dataclass
class TrainingConfig:
    """The loop: how many queries per update, how many updates, with which numbers, and what is written when."""

    global_batch_size: int | None = setting(
        None,
        "Queries per step: all ranks, all accumulated micro-batches. Set this or per_device_batch_size.",
        at_least=1,
    )
    per_device_batch_size: int | None = setting(
        None, "Queries per rank and micro-batch. Set this or global_batch_size.", at_least=1
    )
    accumulation_steps: int = setting(
        1, "Micro-batches per step; each sees its own in-batch negatives only.", at_least=1
    )
    gather: bool = setting(
        True,
        "Contrast a query with the documents of all ranks; false: of its own rank, as accumulated micro-batches are.",
    )
    epochs: int | None = setting(1, "Passes over the data.", at_least=1)
    max_steps: int | None = setting(
        None,
        "Steps (optimizer updates) of the run; where set, it takes the place of epochs. 0: the model is exported as it was.",
        at_least=0,
    )
    mixed_precision: str | None = setting(
        None, "Numbers of the backbone's arithmetic; null: what the launcher says.", choices=("no", "bf16", "fp16")
    )
    chunk_tokens: int = setting(8192, "Tokens per forward pass. Bounds memory, never changes the result.", at_least=1)
    cached_share: float = setting(
        0.0,
        "Share of chunks whose activations are dropped and computed again: 0 plain, 1 GradCache.",
        at_least=0,
        at_most=1,
    )
    clip_norm: float | None = setting(1.0, "Largest norm of the gradient; null: no clipping.", above=0)
    log_every: int = setting(10, "Steps between log lines.", at_least=1)
    evaluate_every: int | None = setting(None, "Steps between evaluations; null: none during training.", at_least=1)
    save_every: int | None = setting(
        500, "Steps between checkpoints; null: only when told to stop, and at the end.", at_least=1
    )
    keep_checkpoints: int = setting(2, "Newest checkpoints kept; 0: all.", at_least=0)
    early_stop: EarlyStopConfig = _part(EarlyStopConfig)
    refresh: dict[str, Any] = setting(
        {}, "Component: when the miner looks for negatives again; {}: once, before the first step."
    )
    callbacks: dict[str, Any] = setting({}, "More callbacks by name: components.")
    strict: bool = setting(False, "Treat every warning about the configuration as an error.")


@dataclass
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    learning_rate: float = setting(2e-5, "Peak learning rate.", above=0)
    weight_decay: float = setting(0.01, "Decay of weight matrices; biases, norms and vectors have none.", at_least=0)
    betas: list[float] = setting([0.9, 0.999], "AdamW's two averages.")
    eps: float = setting(1e-8, "AdamW's epsilon.", above=0)
    schedule: str = setting(
        "linear",
        "Shape after the warm-up: down to zero linearly or by a cosine, wsd (stable, then down), or constant.",
        choices=("linear", "cosine", "wsd", "constant"),
    )
    warmup_steps: int | None = setting(None, "Steps of the warm-up; null: warmup_share.", at_least=0)
    warmup_share: float = setting(
        0.1, "Share of all steps that warm up, where warmup_steps is null.", at_least=0, at_most=1
    )
    decay_share: float = setting(0.1, "Share of all steps that decay at the end (wsd only).", at_least=0, at_most=1)
    layer_decay: float | None = setting(
        None, "Each layer's learning rate is this times that of the layer above; null: all equal.", above=0, at_most=1
    )
    groups: dict[str, Any] = setting(
        {}, "Pattern searched in parameter names -> {learning_rate: ..., weight_decay: ...}."
    )
    head_learning_rate: float | None = setting(
        None, "Learning rate of what is new: pooling, projection, loss; null: learning_rate.", above=0
    )


@dataclass
class EvaluationConfig:
    """What is measured, when, and which number decides."""

    evaluators: dict[str, Any] = setting({}, "Evaluators by name: components of embedtrain.evaluation.")
    primary: str | None = setting(None, "The deciding number as name/metric; null: the first evaluator's own.")
    before: bool = setting(True, "Evaluate before the first step, so that there is something to be better than.")
    after: bool = setting(True, "Evaluate after the last step.")
    resamples: int = setting(2000, "Bootstrap resamples behind each confidence interval.", at_least=100)


@dataclass
class ExportConfig:
    """The finished model as a sentence-transformers folder."""

    dir: str | None = setting(None, "Where the model goes; null: <run.dir>/model.")
    num_probes: int = setting(
        16, "Texts of the run that are embedded before and after a reload and compared.", at_least=1
    )
    whiten_to: int | None = setting(
        None,
        "Whiten the finished embedding to this many dimensions, by texts of the run; null: do not. Unit: dimensions.",
        at_least=1,
    )


@dataclass
class CardConfig:
    """What a recipe reproduces, in the words of its publication. It is shown and compared, and changes nothing of a run."""

    title: str | None = setting(None, "The system: NV-Embed v2.")
    paper: str | None = setting(None, "Who, when and where: Lee et al. 2024, arXiv:2405.17428.")
    model: str | None = setting(None, "The published weights on the hub; null: none were published.")
    parameters: float | None = setting(
        None, "Parameters of the published encoder, as exactly as it says; `check` states both.", above=0
    )
    embedding_dim: int | None = setting(None, "Dimensions of the published embedding.", at_least=1)
    scores: dict[str, Any] = setting({}, "Published results by benchmark: {MTEB-56: 72.31}.")
    hardware: str | None = setting(None, "What the authors trained on.")
    ran: str | None = setting(None, "What was run by this project, and its number.")
    not_run: str | None = setting(None, "What was not, and what differs from the publication.")
    smoke: dict[str, Any] = setting({}, "What `embedtrain smoke` changes besides sizes and texts: values by full key.")


@dataclass
class Config:
    """A whole run. `recipe` is not a key: it is a choice of file and is kept with the run's choices."""

    card: CardConfig = _part(CardConfig)
    run: RunConfig = _part(RunConfig)
    backbone: dict[str, Any] = setting({}, "Component: ragged tokens -> hidden states.")
    pooling: dict[str, Any] = setting({}, "Component: hidden states -> one vector per text.")
    loss: dict[str, Any] = setting({}, "Component: embeddings and their relation -> a number.")
    teachers: dict[str, Any] = setting(
        {}, "Models that a loss learns from, by name: components of embedtrain.teachers."
    )
    objective: dict[str, Any] = setting({}, "Component: token states -> a number; takes the place of the loss.")
    auxiliary: dict[str, Any] = setting(
        {}, "Objectives added to the loss in each step, by name: {weight: ..., objective: component}."
    )
    miner: dict[str, Any] = setting(
        {},
        "Component: finds hard negatives, before and during training and for `embedtrain mine`; {}: those of the rows.",
    )
    encoder: EncoderConfig = _part(EncoderConfig)
    prompts: PromptsConfig = _part(PromptsConfig)
    data: DataConfig = _part(DataConfig)
    training: TrainingConfig = _part(TrainingConfig)
    optim: OptimConfig = _part(OptimConfig)
    evaluation: EvaluationConfig = _part(EvaluationConfig)
    trackers: dict[str, Any] = setting({}, "Where numbers go besides metrics.jsonl, by name: components.")
    export: ExportConfig = _part(ExportConfig)
    stages: dict[str, Any] = setting(
        {},
        "Stages by name, run in order: the settings that differ in each. Every stage starts from the weights before.",
    )
    allow_targets: list[str] = setting(
        [], "Import prefixes, besides embedtrain and torch.optim, that a _target_ may name."
    )


def settings(kind: type = Config, prefix: str = "") -> dict[str, Field]:
    """Every field of the frame by its full key: {"run.name": Field, ..., "backbone": Field, ...}."""
    hints = get_type_hints(kind)
    found: dict[str, Field] = {}
    for item in fields(kind):
        key = f"{prefix}{item.name}"
        if is_dataclass(hints[item.name]):
            found |= settings(hints[item.name], f"{key}.")
        else:
            found[key] = item
    return found
