"""The training job, in the order in which it happens: from a resolved config to a verified model and a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from embedtrain import distributed, sharding
from embedtrain.assemble import build_encoder, build_evaluators, build_teachers
from embedtrain.data.loader import StepLoader
from embedtrain.encoder import Encoder
from embedtrain.evaluation.comparison import comparison_table
from embedtrain.evaluation.report import write_report
from embedtrain.evaluation.result import EvaluationResult, read_results, write_results
from embedtrain.export.sentence_transformers import check_exportable, export
from embedtrain.run import Run
from embedtrain.training.building import (
    Results,
    build_learned,
    build_loader,
    build_trackers,
    build_trainer,
    objectives_of,
)
from embedtrain.training.negatives import build_mining
from embedtrain.training.record import run_record
from embedtrain.training.stages import Stage, hand_on, stages_of, take_over
from embedtrain.training.texts import read_context, texts_of, whiten
from embedtrain.whitening import check_whitening

log = logging.getLogger("embedtrain")


@dataclass(frozen=True)
class Trained:
    """What a stage leaves behind."""

    encoder: Encoder
    loader: StepLoader
    steps: int
    after: Results


def run_training(config: dict[str, Any], run: Run) -> int:
    """Train, prove, export, report. Returns the exit code. Every rank calls it.

    Raises EmbedtrainError for what a user can mend, and `Terminated` after a signal, with a checkpoint written.
    """
    started = time.time()
    sharding.is_wanted()  # or refused, before anything is read
    accelerator = Accelerator(mixed_precision=config["training"]["mixed_precision"])
    stages = stages_of(run)
    for stage in stages:
        if stage.is_done:
            log.info("stage %s: done before", stage.name)
            continue
        trained = train_stage(stage, accelerator)
        if not stage.is_last:
            if distributed.is_main():
                hand_on(trained.encoder, stage)
            del trained  # before the next stage reads its own
    if distributed.is_main():
        finish(stages[-1], trained, seconds=time.time() - started)
    distributed.barrier()
    return 0


def train_stage(stage: Stage, accelerator: Accelerator) -> Trained:
    """From the weights of the stage before, or the checkpoint at hand, to the last step and the evaluation after it."""
    config, run = stage.config, stage.run
    torch.manual_seed(config["run"]["seed"])  # of new weights; batches and dropout have seeds of their own
    encoder = build_encoder(config)
    if stage.previous is not None and distributed.is_main():
        take_over(encoder, stage.previous.weights)  # the other ranks are told below
    encoder.to(accelerator.device)
    encoder.encode_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    teachers = build_teachers(config)
    learned = build_learned(config, encoder, teachers)
    check_exportable(encoder)
    if config["export"]["whiten_to"] is not None:
        check_whitening(encoder, config["export"]["whiten_to"])
    distributed.broadcast_tensors([*encoder.state_dict(keep_vars=True).values(), *learned.parameters()])
    if distributed.is_main():
        introduce(stage, encoder, learned)
    loader = build_loader(config, encoder, teachers)
    for teacher in teachers.values():
        teacher.load(accelerator.device)
    evaluators = build_evaluators(config)
    evaluate = partial(evaluate_all, evaluators, encoder)
    if sharding.is_wanted():
        sharding.shard(encoder, encoder.encode_dtype)
        log.info("%s", sharding.describe(encoder))

    measured_once(stage.results("before"), evaluate, config["evaluation"]["before"])
    previous = None if stage.previous is None else stage.previous.weights
    negatives = build_mining(config, encoder, loader.sampler.mixture.sources, run.dir, previous)
    trackers = build_trackers(config, run)
    try:
        trainer = build_trainer(
            config, run, encoder, learned, loader, accelerator, evaluate, trackers, teachers, negatives
        )
        done = trainer.fit(trainer.resume())
        if trainer.total_steps:  # of a model that stays as it was there is nothing to resume
            trainer.save(done)
    finally:
        if negatives is not None:
            negatives.close()
        for tracker in trackers:
            tracker.finish()
    if trainer.stop_reason:
        log.info("stopped early after %d steps: %s", done, trainer.stop_reason)
    if sharding.is_sharded(encoder):
        del trainer  # and with it the optimizer's state: the weights are whole again on every rank from here on
        encoder = whole_again(encoder, config)
        evaluate = partial(evaluate_all, evaluators, encoder)
    if stage.is_last:
        read_context(encoder, list(loader.sampler.mixture.sources.values()))
        whiten(config, encoder, list(loader.sampler.mixture.sources.values()))
    after = measured_once(stage.results("after"), evaluate, config["evaluation"]["after"], again=True)
    return Trained(encoder, loader, done, after)


def whole_again(encoder: Encoder, config: Mapping[str, Any]) -> Encoder:
    """A sharded encoder as a plain one, on every rank."""
    fresh = build_encoder(config)
    fresh.to(encoder.device)
    fresh.encode_dtype = encoder.encode_dtype
    fresh.read_layers(encoder.layers)
    sharding.fill(fresh, encoder)
    return fresh


def introduce(stage: Stage, encoder: Encoder, learned: nn.Module) -> None:
    """What is trained, how much of it, and what of it will not be in the exported model."""
    if stage.name:
        log.info("stage %s, number %d of the run", stage.name, stage.number)
    log.info("%s", trained_share(encoder, learned))
    for objective in objectives_of(learned, stage.config):
        own = sum(p.numel() for p in objective.parameters())
        if own:
            log.info(
                "%s: %s parameters of its own train, are in checkpoints and are not exported",
                type(objective).__name__,
                f"{own:,}",
            )


def trained_share(encoder: Encoder, learned: nn.Module) -> str:
    """How much of the model is trained: adapters that are not would go unnoticed otherwise."""
    everything = [*encoder.parameters(), *learned.parameters()]
    total = sum(p.numel() for p in everything)
    trained = sum(p.numel() for p in everything if p.requires_grad)
    share = "all trained" if trained == total else f"{trained:,} trained ({trained / total:.2%})"
    return f"{total:,} parameters, {share}"


def evaluate_all(evaluators: Mapping[str, Callable[..., EvaluationResult]], encoder: Encoder) -> Results:
    """Every evaluator's result under its name in the config; the same on every rank."""
    with sharding.whole(encoder):
        return {
            name: replace(evaluator(encoder, show_progress=True), name=name) for name, evaluator in evaluators.items()
        }


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


def finish(stage: Stage, trained: Trained, *, seconds: float) -> None:
    """Compare, export, verify, report. `stage` is the last. Rank 0 alone."""
    config, run = stage.config, stage.whole
    measured = run.dir / "evaluation" / "before.json"
    before = read_results(measured) if measured.exists() else {}
    if before and trained.after:
        log.info("\n%s", comparison_table(before, trained.after, resamples=config["evaluation"]["resamples"]))
    record = run_record(stage, trained.loader, before, trained.after, steps=trained.steps, seconds=seconds)
    sources = list(trained.loader.sampler.mixture.sources.values())
    probes = texts_of(sources, config["export"]["num_probes"])
    read_context(trained.encoder, sources)
    folder = Path(config["export"]["dir"] or run.dir / "model")
    exported = export(trained.encoder, folder, probes=probes, record=record)
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
