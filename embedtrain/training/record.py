"""The run's own facts, for the model card. Nothing here is measured again or made up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from embedtrain.config.models import model_name
from embedtrain.config.rules import auxiliary_of
from embedtrain.config.stages import stage_configs
from embedtrain.data.loader import StepLoader
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.evaluation.statistics import compare
from embedtrain.export.record import MetricRecord, RunRecord, SourceRecord
from embedtrain.run import Run
from embedtrain.training.stages import Stage

_HYPER_PARAMETERS = (
    "learning_rate",
    "weight_decay",
    "schedule",
    "warmup_steps",
    "warmup_share",
    "betas",
    "layer_decay",
)


def run_record(
    stage: Stage,
    loader: StepLoader,
    before: Mapping[str, EvaluationResult],
    after: Mapping[str, EvaluationResult],
    *,
    steps: int,
    seconds: float,
) -> RunRecord:
    """What the card may say of this run, of which `stage` is the last; the encoder's own facts are added by the export."""
    config, run = stage.config, stage.whole
    mixture = loader.sampler.mixture
    return RunRecord(
        name=config["run"]["name"],
        base_model=model_name(config["backbone"]),
        sources=tuple(
            SourceRecord(name=name, rows=int(rows), weight=float(share))
            for name, rows, share in zip(mixture.names, mixture.sizes, mixture.shares, strict=True)
        ),
        loss=", then ".join(map(learned_line, stage_configs(run.config).values())),
        negatives=negatives_line(stage.run),
        hyper_parameters={
            "steps": steps,
            "epochs": round(loader.epoch_of(steps), 3),
            "global_batch_size": loader.sampler.global_batch_size,
            **{key: config["optim"][key] for key in _HYPER_PARAMETERS if config["optim"][key] is not None},
            "seed": config["run"]["seed"],
        },
        seconds=seconds,
        command=run.command,
        environment=json.loads((run.dir / "environment.json").read_text(encoding="utf-8")).get("versions", {}),
        metrics=tuple(compared(before, after, resamples=config["evaluation"]["resamples"])),
    )


def learned_line(config: Mapping[str, Any]) -> str:
    """What a stage learns from: `SymmetricInfoNCE(...) + 0.1 * RepresentationTranslation(...)`."""
    added = [f"{node['weight']:g} * {one_line(node['objective'])}" for node in auxiliary_of(config).values()]
    return " + ".join([one_line(config["objective"] or config["loss"]), *added])


def one_line(component: Mapping[str, Any]) -> str:
    """`InfoNCE(temperature=0.05, terms=['q2d'])`: a component by class and by what differs from null."""
    kind = str(component["_target_"]).rsplit(".", 1)[-1]
    settings = []
    for key, value in component.items():
        if key != "_target_" and value is not None:
            settings.append(
                f"{key}={one_line(value) if isinstance(value, Mapping) and '_target_' in value else value!r}"
            )
    return f"{kind}({', '.join(settings)})"


def negatives_line(run: Run) -> str | None:
    path = run.dir / "negatives.json"
    return json.loads(path.read_text(encoding="utf-8"))["line"] if path.exists() else None


def compared(
    before: Mapping[str, EvaluationResult], after: Mapping[str, EvaluationResult], *, resamples: int
) -> list[MetricRecord]:
    """Each metric before and after, with the interval of the difference where single queries were measured."""
    records = []
    for name in after or before:
        old, new = before.get(name), after.get(name)
        if old and new:
            for found in compare(old, new, resamples=resamples):
                interval = None if found.low is None or found.high is None else (found.low, found.high)
                both: dict[str, Any] = {"before": found.before, "after": found.after, "interval": interval}
                records.append(MetricRecord(evaluator=name, metric=found.metric, **both))
        elif new:
            records += [
                MetricRecord(evaluator=name, metric=metric, after=value) for metric, value in new.metrics.items()
            ]
        elif old:
            records += [
                MetricRecord(evaluator=name, metric=metric, before=value) for metric, value in old.metrics.items()
            ]
    return records
