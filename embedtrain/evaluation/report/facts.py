"""What was the run made of, how is it repeated, and what does the page not say?"""

from __future__ import annotations

import shlex
from html import escape
from typing import Any

from embedtrain.evaluation.report.files import RunFiles
from embedtrain.evaluation.report.words import component, definitions, inline, quoted, with_unit
from embedtrain.evaluation.statistics import Difference


def made_of(run: RunFiles) -> str:
    parts = {"Model": _model(run), "Data": _data(run), "Training": _training(run), "Environment": _environment(run)}
    lists = "".join(
        f"<div><h3>{title}</h3>{definitions(facts)}</div>" for title, facts in parts.items() if any(facts.values())
    )
    return f'<section><h2>What the run was made of</h2><div class="columns">{lists}</div></section>' if lists else ""


def _model(run: RunFiles) -> dict[str, Any]:
    return {
        "backbone": run.backbone or None,
        "pooling": component(run.setting("pooling")),
        "LoRA": inline(run.setting("backbone.lora")),
        "longest query": with_unit(run.setting("encoder.max_query_length"), "tokens"),
        "longest document": with_unit(run.setting("encoder.max_document_length"), "tokens"),
        "query prompt": quoted(run.setting("prompts.query")),
        "document prompt": quoted(run.setting("prompts.document")),
    }


def _data(run: RunFiles) -> dict[str, Any]:
    sources = run.setting("data.sources") or {}
    return {
        **{name: component(source) for name, source in sources.items() if source},
        "first step": run.first_step.get("line", "").removeprefix("first step: "),
    }


def _training(run: RunFiles) -> dict[str, Any]:
    return {
        "loss": component(run.setting("loss")),
        "batch": with_unit(run.setting("training.global_batch_size"), "queries per step")
        or with_unit(run.setting("training.per_device_batch_size"), "queries per device"),
        "learning rate": run.setting("optim.learning_rate"),
        "schedule": run.setting("optim.schedule"),
        "weight decay": run.setting("optim.weight_decay"),
        "epochs": run.setting("training.epochs") if run.setting("training.max_steps") is None else None,
        "precision": run.setting("training.mixed_precision"),
        "cached share": run.setting("training.cached_share") or None,
        "seed": run.setting("run.seed"),
    }


def _environment(run: RunFiles) -> dict[str, Any]:
    known = run.environment
    hardware = known.get("hardware") or {}
    git = known.get("git") or {}
    devices = hardware.get("devices") or []
    return {
        "ranks": known.get("world_size"),
        "devices": ", ".join(devices) or ("CPU only" if hardware else None),
        "CPU cores": hardware.get("cpu_cores"),
        "memory": with_unit(hardware.get("memory_gb"), "GB"),
        "platform": known.get("platform"),
        "Python": known.get("python"),
        "commit": f"{git['commit'][:12]}{' and uncommitted changes' if git.get('dirty') else ''}" if git else None,
        "packages": ", ".join(f"{name} {version}" for name, version in (known.get("versions") or {}).items()),
    }


def repeat(run: RunFiles) -> str:
    typed = run.environment.get("command")
    ranks = run.environment.get("world_size") or 1
    again = shlex.join(["embedtrain", "train", "--from-run", str(run.dir), f"run.name={run.name}-again"])
    started = (
        f"<p>As it was started{f' (on {ranks} ranks)' if ranks > 1 else ''}:</p><pre>{escape(typed)}</pre>"
        if typed
        else ""
    )
    config = (
        f"<details><summary>Every setting (config.yaml)</summary><pre>{escape(run.config_text)}</pre></details>"
        if run.config_text
        else ""
    )
    return (
        f"<section><h2>To repeat it</h2>{started}<p>From its saved settings, whatever the recipes say by now:</p>"
        f"<pre>{escape(again)}</pre>{config}</section>"
    )


def limits(run: RunFiles, changes: dict[str, list[Difference]]) -> str:
    notes = list(run.missing)
    if changes:
        notes.append(
            "The intervals tell how much the change depends on the choice of queries. They do not cover another seed, other "
            "training data or other tasks."
        )
    for name in changes:
        old, new = run.before[name].per_query or {}, run.after[name].per_query or {}
        if any(old[metric].keys() != new[metric].keys() for metric in old.keys() & new.keys()):
            notes.append(f"{name} was measured on different queries before and after: its change has no interval.")
    for name, result in run.after.items():
        unjudged = result.details.get("num_unjudged_queries")
        if unjudged:
            notes.append(
                f"{name}: {unjudged:,} queries of the folder have no relevant document in this split and were left out."
            )
        if "context" in result.details:
            notes.append(
                f"{name}: texts were read behind {result.details['context']}. Behind others they have other embeddings."
            )
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section><h2>What this page does not say</h2><ul class="notes">{items}</ul></section>'
