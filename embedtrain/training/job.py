"""The training job, in the order in which it happens: from a resolved config to a verified model and a report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from embedtrain import distributed
from embedtrain.assemble import build_encoder, build_evaluators, build_sources, build_teachers
from embedtrain.config.build import build
from embedtrain.config.rules import negatives_read
from embedtrain.data.describe import describe
from embedtrain.data.loader import StepLoader
from embedtrain.data.mixture import Mixture
from embedtrain.data.sampling import Sampler
from embedtrain.encoder import Encoder
from embedtrain.errors import DataError, TrainingError
from embedtrain.evaluation.comparison import comparison_table
from embedtrain.evaluation.report import write_report
from embedtrain.evaluation.result import EvaluationResult, read_results, write_results
from embedtrain.export.sentence_transformers import check_exportable, export
from embedtrain.losses import prepare
from embedtrain.run import Run
from embedtrain.teachers.spread import refuse_squashed_batch
from embedtrain.training.callbacks import Callback, Evaluate, Save
from embedtrain.training.optim import adamw, named_trainable, parameter_groups, schedule_factor
from embedtrain.training.record import run_record
from embedtrain.training.step import ContrastiveStep
from embedtrain.training.telemetry import batch_facts
from embedtrain.training.trackers import Tracker
from embedtrain.training.trackers.jsonl import JsonLinesTracker
from embedtrain.training.trainer import Trainer
from embedtrain.types import Teacher, TokenBatch

log = logging.getLogger("embedtrain")

Results = dict[str, EvaluationResult]


def run_training(config: dict[str, Any], run: Run) -> int:
    """Train, prove, export, report. Returns the exit code. Every rank calls it.

    Raises EmbedtrainError for what a user can mend, and `Terminated` after a signal, with a checkpoint written.
    """
    started = time.time()
    accelerator = Accelerator(mixed_precision=config["training"]["mixed_precision"])
    torch.manual_seed(config["run"]["seed"])  # of new weights; batches and dropout have seeds of their own
    encoder = build_encoder(config).to(accelerator.device)
    encoder.encode_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    teachers, loss = build_teachers(config), build(config["loss"])
    prepare(loss, embedding_dim=encoder.embedding_dim, teachers={name: t.dim for name, t in teachers.items()})
    loss.to(accelerator.device)
    check_exportable(encoder)
    distributed.broadcast_tensors([*encoder.parameters(), *loss.parameters()])
    if distributed.is_main():
        log.info("%s", trained_share(encoder, loss))
    loader = build_loader(config, encoder, teachers)
    for teacher in teachers.values():
        teacher.load(accelerator.device)
    evaluate = partial(evaluate_all, build_evaluators(config), encoder)

    before = measured_once(run.dir / "evaluation" / "before.json", evaluate, config["evaluation"]["before"])
    trackers = build_trackers(config, run)
    try:
        trainer = build_trainer(config, run, encoder, loss, loader, accelerator, evaluate, trackers, teachers)
        done = trainer.fit(trainer.resume())
        trainer.save(done)
    finally:
        for tracker in trackers:
            tracker.finish()
    if trainer.stop_reason:
        log.info("stopped early after %d steps: %s", done, trainer.stop_reason)

    after = measured_once(run.dir / "evaluation" / "after.json", evaluate, config["evaluation"]["after"], again=True)
    if distributed.is_main():
        finish(config, run, encoder, loader, before, after, steps=done, seconds=time.time() - started)
    distributed.barrier()
    return 0


def trained_share(encoder: Encoder, loss: nn.Module) -> str:
    """How much of the model is trained: adapters that are not would go unnoticed otherwise."""
    everything = [*encoder.parameters(), *loss.parameters()]
    total = sum(p.numel() for p in everything)
    trained = sum(p.numel() for p in everything if p.requires_grad)
    share = "all trained" if trained == total else f"{trained:,} trained ({trained / total:.2%})"
    return f"{total:,} parameters, {share}"


def build_loader(
    config: Mapping[str, Any], encoder: Encoder, teachers: Mapping[str, Teacher] | None = None
) -> StepLoader:
    data, training = config["data"], config["training"]
    mixture = Mixture(sources=build_sources(config), batching=data["batching"], exponent=data["exponent"])
    refuse_unequal_data(mixture)
    sampler = Sampler(
        mixture,
        seed=config["run"]["seed"],
        global_batch_size=global_batch_size(training),
        num_positives=data["num_positives"],
        num_negatives=data["num_negatives"],
        drop_last=data["drop_last"],
    )
    if distributed.is_main():
        log.info("%s", describe(sampler))
    return StepLoader(
        sampler=sampler,
        tokenizer=encoder.tokenizer,
        accumulation_steps=training["accumulation_steps"],
        num_workers=data["num_workers"],
        teachers=teachers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
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


def build_trainer(
    config: Mapping[str, Any],
    run: Run,
    encoder: Encoder,
    loss: nn.Module,
    loader: StepLoader,
    accelerator: Accelerator,
    evaluate: Callable[[], Results],
    trackers: list[Tracker],
    teachers: Mapping[str, Teacher] | None = None,
) -> Trainer:
    training, optim = config["training"], config["optim"]
    scaler = accelerator.scaler
    step = ContrastiveStep(
        encoder=encoder,
        loss=loss,
        chunk_tokens=training["chunk_tokens"],
        cached_share=training["cached_share"],
        seed=config["run"]["seed"],
        device=accelerator.device,
        autocast=accelerator.autocast,
        teachers=teachers,
        **({"scale": scaler.scale} if scaler is not None else {}),
    )
    named = named_trainable(encoder, loss)
    groups = parameter_groups(
        named,
        **{key: optim[key] for key in ("learning_rate", "weight_decay", "head_learning_rate", "layer_decay", "groups")},
    )
    total = training["max_steps"] or training["epochs"] * len(loader)
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
        scaler=scaler,
        callbacks=build_callbacks(config, run, evaluate),
        trackers=trackers,
        fingerprint={"the data": loader.sampler.mixture.fingerprint},
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


def evaluate_all(evaluators: Mapping[str, Callable[..., EvaluationResult]], encoder: Encoder) -> Results:
    """Every evaluator's result under its name in the config; the same on every rank."""
    return {name: replace(evaluator(encoder, show_progress=True), name=name) for name, evaluator in evaluators.items()}


def measured_once(path: Path, evaluate: Callable[[], Results], wanted: bool, *, again: bool = False) -> Results:
    """Evaluate and keep the answer in `path`; a resumed run reads it from there instead (unless `again`)."""
    if not wanted:
        return {}
    if distributed.broadcast_object(path.exists() and not again):
        return read_results(path)
    results = evaluate()
    if distributed.is_main() and results:
        write_results(path, results)
    distributed.barrier()
    return results


def say_first_step(step: ContrastiveStep, run: Run, micro_batches: Sequence[TokenBatch]) -> None:
    """The line that tells what a query is contrasted with: in the log, and in negatives.json for card and report.

    Raises ConfigError or TrainingError where this step, and so probably every other, teaches nothing.
    """
    refuse_squashed_batch(step.loss, step.teachers, micro_batches)
    padded = step.chunk_tokens if getattr(step.encoder.backbone, "kernel", "") == "padded" else None
    reads = negatives_read(run.config["loss"])
    facts = batch_facts(micro_batches, in_batch=reads != {"hard_only"}, padded_chunk_tokens=padded)
    if distributed.is_main():
        log.info("%s", facts.line())
        known = asdict(facts) | {"line": facts.line()}
        (run.dir / "negatives.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    if reads and facts.negatives == 0:
        raise TrainingError(
            "every query of the first step has its positive and no negative, so the loss would be 0 and teach nothing. Raise "
            "training.global_batch_size, or give the rows hard negatives (columns: negatives)."
        )


def finish(
    config: Mapping[str, Any],
    run: Run,
    encoder: Encoder,
    loader: StepLoader,
    before: Results,
    after: Results,
    *,
    steps: int,
    seconds: float,
) -> None:
    """Compare, export, verify, report. Rank 0 alone."""
    if before and after:
        log.info("\n%s", comparison_table(before, after, resamples=config["evaluation"]["resamples"]))
    record = run_record(config, run, loader, before, after, steps=steps, seconds=seconds)
    probes = probe_texts(loader, config["export"]["num_probes"])
    folder = Path(config["export"]["dir"] or run.dir / "model")
    exported = export(encoder, folder, probes=probes, record=record)
    for note in exported.notes:
        log.info("export: %s", note)
    write_report(run.dir / "report.html", run.dir)
    log.info(
        "model  %s  (%s gives the same embeddings for %d texts: cosine at least %.6f)",
        exported.path,
        exported.verified_with,
        exported.num_probes,
        exported.worst_cosine,
    )
    log.info("report %s", run.dir / "report.html")


def probe_texts(loader: StepLoader, count: int) -> list[str]:
    """Texts of the run itself, spread over its sources: queries and documents by turns."""
    sources = list(loader.sampler.mixture.sources.values())
    texts: list[str] = []
    for number in range(count):
        source = sources[number % len(sources)]
        example = source[(number * 7919) % len(source)]
        texts.append(example.query if number % 2 == 0 else example.positives[0])
    return texts
