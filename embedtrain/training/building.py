"""From the settings of a stage to the live parts of its training: data, step, optimizer, callbacks, trackers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch import nn

from embedtrain import distributed
from embedtrain.assemble import build_sources
from embedtrain.backbones.soft_mask import refuse_unfinished
from embedtrain.config.build import build
from embedtrain.config.rules import auxiliary_of, negatives_read
from embedtrain.data.describe import describe
from embedtrain.data.draws import Ints
from embedtrain.data.lengths import check_lengths
from embedtrain.data.loader import StepLoader
from embedtrain.data.mixture import Mixture
from embedtrain.data.neighbourhoods import describe_neighbourhoods
from embedtrain.data.sampling import Sampler, softmaxes
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError, DataError, TrainingError
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.losses.fit import fit
from embedtrain.run import Run
from embedtrain.teachers.spread import refuse_squashed_batch
from embedtrain.training.callbacks import Callback, Evaluate, Save
from embedtrain.training.joint_step import Joined, JointStep
from embedtrain.training.optim import adamw, named_trainable, parameter_groups, schedule_factor
from embedtrain.training.step import ContrastiveStep
from embedtrain.training.telemetry import batch_facts
from embedtrain.training.token_step import TokenStep, learning
from embedtrain.training.trackers import Tracker
from embedtrain.training.trackers.jsonl import JsonLinesTracker
from embedtrain.training.trainer import Trainer
from embedtrain.types import Teacher, TokenBatch

if TYPE_CHECKING:
    from embedtrain.training.negatives import NegativeMining

log = logging.getLogger("embedtrain")

Results = dict[str, EvaluationResult]


def build_loader(
    config: Mapping[str, Any], encoder: Encoder, teachers: Mapping[str, Teacher] | None = None
) -> StepLoader:
    data, training = config["data"], config["training"]
    mixture = Mixture(sources=build_sources(config), batching=data["batching"], exponent=data["exponent"])
    check_lengths(mixture.sources, encoder.tokenizer, getattr(encoder.backbone, "longest_text", None))
    refuse_unequal_data(mixture)
    sampler = Sampler(
        mixture,
        seed=config["run"]["seed"],
        global_batch_size=global_batch_size(training),
        num_positives=data["num_positives"],
        num_negatives=data["num_negatives"],
        drop_last=data["drop_last"],
        sources_per_batch=data["sources_per_batch"],
        softmaxes=softmaxes(training, distributed.world_size()),
        clusters=find_clusters(config, mixture, encoder),
    )
    if distributed.is_main():
        log.info("%s", describe(sampler))
        if sampler.clusters:
            log.info("%s", describe_neighbourhoods(sampler))
    return StepLoader(
        sampler=sampler,
        tokenizer=encoder.tokenizer,
        accumulation_steps=training["accumulation_steps"],
        num_workers=data["num_workers"],
        teachers=teachers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def find_clusters(config: Mapping[str, Any], mixture: Mixture, encoder: Encoder) -> dict[str, Ints]:
    """The cluster of each row, where batches are neighbourhoods."""
    if not config["data"]["neighbourhoods"]:
        return {}
    return build(config["data"]["neighbourhoods"]).clusters_of(
        mixture,
        batch_size=global_batch_size(config["training"]),
        softmaxes=softmaxes(config["training"], distributed.world_size()),
        encoder=encoder,
        run_dir=Path(config["run"]["dir"]),
    )


def refuse_unequal_data(mixture: Mixture) -> None:
    """Each rank plans the batches for itself, so each must have read the same rows."""
    found = distributed.gather_objects(mixture.fingerprint)
    others = [number for number, fingerprint in enumerate(found) if fingerprint != found[0]]
    if others:
        raise DataError(
            f"data.sources: ranks {others} read other rows than rank 0 (or in another order), so their batches would not fit "
            "together. Give every machine the same files."
        )


def global_batch_size(training: Mapping[str, Any]) -> int:
    """Queries per step over all ranks and micro-batches, from whichever of the two keys is set."""
    if training["global_batch_size"] is not None:
        return training["global_batch_size"]
    return training["per_device_batch_size"] * distributed.world_size() * training["accumulation_steps"]


def build_learned(config: Mapping[str, Any], encoder: Encoder, teachers: Mapping[str, Teacher]) -> nn.Module:
    """What the encoder learns from: the loss, that and what is added to it, or the objective."""
    if config["objective"]:
        return build(config["objective"], encoder=encoder).to(encoder.device)
    loss = build(config["loss"])
    sources = [name for name, node in config["data"]["sources"].items() if node is not None]
    fit(loss, encoder, teachers={name: t.dim for name, t in teachers.items()}, sources=sources)
    added = auxiliary_of(config)
    if not added:
        return loss.to(encoder.device)
    objectives = {name: build(node["objective"], encoder=encoder) for name, node in added.items()}
    return Joined(loss, objectives, {name: node["weight"] for name, node in added.items()}).to(encoder.device)


def objectives_of(learned: nn.Module, config: Mapping[str, Any]) -> list[nn.Module]:
    """What of it reads token states: the objective, or those that are added to the loss."""
    if config["objective"]:
        return [learned]
    return list(learned.objectives.values()) if isinstance(learned, Joined) else []


def build_step(
    config: Mapping[str, Any],
    encoder: Encoder,
    learned: nn.Module,
    accelerator: Accelerator,
    teachers: Mapping[str, Teacher] | None = None,
) -> ContrastiveStep | TokenStep:
    training, scaler = config["training"], accelerator.scaler
    shared: dict[str, Any] = {
        "encoder": encoder,
        "chunk_tokens": training["chunk_tokens"],
        "seed": config["run"]["seed"],
        "device": accelerator.device,
        "autocast": accelerator.autocast,
        **({"scale": scaler.scale} if scaler is not None else {}),
    }
    if config["objective"]:
        return TokenStep(objective=learned, **shared)
    if not training["gather"]:
        refuse_memory(learned)
    contrast: dict[str, Any] = {
        "cached_share": training["cached_share"],
        "teachers": teachers,
        "gather": training["gather"],
    }
    if isinstance(learned, Joined):
        return JointStep(learned=learned, passes=shared, contrast=contrast)
    return ContrastiveStep(loss=learned, **contrast, **shared)


def refuse_memory(loss: nn.Module) -> None:
    """Raises ConfigError for a loss that remembers, where each rank would remember something else and a checkpoint holds one."""
    remembered = [name for name, _ in loss.named_buffers()]
    if remembered and distributed.world_size() > 1:
        raise ConfigError(
            f"training.gather=false: the loss remembers what it has seen ({remembered[0]}), and every rank would see something "
            "else. Set training.gather=true, or leave the memory out."
        )


def build_named(config: Mapping[str, Any], encoder: Encoder, learned: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What is trained, by the names that it has in checkpoints."""
    if config["objective"]:
        return named_trainable(learning(encoder, learned))
    if isinstance(learned, Joined):
        added = {f"auxiliary.{name}": objective for name, objective in learned.objectives.items()}
        return named_trainable({"encoder": encoder, "loss": learned.loss, **added})
    return named_trainable({"encoder": encoder, "loss": learned})


def build_trainer(
    config: Mapping[str, Any],
    run: Run,
    encoder: Encoder,
    learned: nn.Module,
    loader: StepLoader,
    accelerator: Accelerator,
    evaluate: Callable[[], Results],
    trackers: list[Tracker],
    teachers: Mapping[str, Teacher] | None = None,
    negatives: NegativeMining | None = None,
) -> Trainer:
    training, optim = config["training"], config["optim"]
    step = build_step(config, encoder, learned, accelerator, teachers)
    named = build_named(config, encoder, learned)
    groups = parameter_groups(
        named,
        **{key: optim[key] for key in ("learning_rate", "weight_decay", "head_learning_rate", "layer_decay", "groups")},
    )
    total = training["epochs"] * len(loader) if training["max_steps"] is None else training["max_steps"]
    refuse_unfinished(encoder, total)
    if negatives is not None:
        negatives.total_steps = total
    return Trainer(
        step=step,
        loader=loader,
        optimizer=adamw(groups, betas=tuple(optim["betas"]), eps=optim["eps"]),
        named=named,
        schedule=build_schedule(optim, total),
        total_steps=total,
        checkpoints=run.dir / "checkpoints",
        keep=training["keep_checkpoints"],
        clip_norm=training["clip_norm"],
        log_every=training["log_every"],
        scaler=accelerator.scaler,
        callbacks=build_callbacks(config, run, evaluate),
        trackers=trackers,
        fingerprint=loader.sampler.fingerprint | ({} if negatives is None else negatives.fingerprint),
        negatives=negatives,
        on_first_step=partial(say_first_step, step, run),
    )


def build_schedule(optim: Mapping[str, Any], total: int) -> Callable[[int], float]:
    warmup = optim["warmup_steps"]
    return partial(
        schedule_factor,
        schedule=optim["schedule"],
        total_steps=total,
        warmup_steps=round(optim["warmup_share"] * total) if warmup is None else warmup,
        decay_steps=round(optim["decay_share"] * total),
    )


def build_callbacks(config: Mapping[str, Any], run: Run, evaluate: Callable[[], Results]) -> dict[str, Callback]:
    """Evaluation comes before saving, so that a checkpoint knows of the evaluation at its own step."""
    training = config["training"]
    callbacks: dict[str, Callback] = {}
    if training["evaluate_every"]:
        callbacks["evaluate"] = Evaluate(
            evaluate=evaluate,
            every=training["evaluate_every"],
            primary=training["early_stop"]["metric"] or config["evaluation"]["primary"],
            patience=training["early_stop"]["patience"],
            best_path=run.dir / "checkpoints" / "best.safetensors",
        )
    callbacks |= {name: build(node) for name, node in training["callbacks"].items() if node is not None}
    callbacks["save"] = Save(every=training["save_every"])
    return callbacks


def build_trackers(config: Mapping[str, Any], run: Run) -> list[Tracker]:
    """Of rank 0; the others have none."""
    if not distributed.is_main():
        return []
    trackers: list[Tracker] = [JsonLinesTracker()]
    trackers += [build(node) for node in config["trackers"].values() if node is not None]
    for tracker in trackers:
        tracker.start(run_name=config["run"]["name"], run_dir=str(run.dir), config=dict(config), resumed=run.resumed)
    return trackers


def say_first_step(step: ContrastiveStep | TokenStep, run: Run, micro_batches: Sequence[TokenBatch]) -> None:
    """The line that tells what a query is contrasted with: in the log, and in negatives.json for card and report.

    Raises ConfigError or TrainingError where this step, and so probably every other, teaches nothing.
    """
    if isinstance(step, TokenStep):
        say_first_tasks({"": step}, micro_batches)
        return
    refuse_squashed_batch(step.loss, step.teachers, micro_batches)
    padded = step.chunk_tokens if getattr(step.encoder.backbone, "kernel", "") == "padded" else None
    reads = negatives_read(run.config["loss"])
    facts = batch_facts(
        micro_batches,
        in_batch=reads != {"hard_only"},
        padded_chunk_tokens=padded,
        gather=run.config["training"]["gather"],
    )
    if distributed.is_main():
        log.info("%s", facts.line())
        known = asdict(facts) | {"line": facts.line()}
        (run.dir / "negatives.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    if isinstance(step, JointStep):
        say_first_tasks(step.added, micro_batches)
    if reads and facts.negatives == 0:
        raise TrainingError(
            "every query of the first step has its positive and no negative, so the loss would be 0 and teach nothing. Raise "
            "training.global_batch_size, or give the rows hard negatives (columns: negatives)."
        )


def say_first_tasks(steps: Mapping[str, TokenStep], micro_batches: Sequence[TokenBatch]) -> None:
    """What the first step asks by each objective. Every rank calls it."""
    for name, step in steps.items():
        line = step.first_line(micro_batches)
        if distributed.is_main():
            log.info("%s%s", name and f"{name}: ", line)
