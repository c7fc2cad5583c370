"""Small whole runs: a tiny random model on a file of toy pairs, without the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from embedtrain import distributed, sharding
from embedtrain.assemble import build_encoder, build_teachers
from embedtrain.config.compose import compose_config
from embedtrain.config.validate import validate
from embedtrain.run import Run
from embedtrain.training.building import build_learned, build_loader, build_trackers, build_trainer
from embedtrain.training.negatives import build_mining
from embedtrain.training.trainer import Trainer
from tests.helpers.models import tiny_model_dir

WORDS = "red green blue small large old new round fast slow cat dog bird fish tree stone river cloud road".split()  # noqa: SIM905


def write_pairs(path: Path, count: int = 26, *, negatives: int = 1) -> Path:
    """Rows with a query, its answer and some hard negatives; texts of many lengths."""
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=draw).tolist())

    rows = []
    for i in range(count):
        subject = text(2) + f" {i}"
        rows.append(
            {
                "query": f"where is {subject}",
                "positive": f"{subject} {text(1 + i % 9)}",
                "negatives": [f"{text(1 + i % 5)} {i}" for _ in range(negatives)],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_settings(folder: Path, *overrides: str, name: str = "run") -> list[str]:
    """What to type for a run in `folder`: batches of 8 of 26 rows, 2 epochs of 3 steps, dropout as the model has it."""
    model = folder / "model"
    if not model.exists():
        Path(tiny_model_dir("bert", folder)).rename(model)
        write_pairs(folder / "pairs.jsonl")
    return [
        "data=pairs",
        f"data.path={folder / 'pairs.jsonl'}",
        "data.num_workers=0",
        f"backbone.name={model}",
        f"run.dir={folder / name}",
        "encoder.max_query_length=64",
        "encoder.max_document_length=64",
        "training.global_batch_size=8",
        "training.epochs=2",
        "training.chunk_tokens=64",
        "training.log_every=1",
        "optim.learning_rate=1e-3",
        *overrides,
    ]


def tiny_config(folder: Path, *overrides: str, name: str = "run") -> dict[str, Any]:
    """The valid config of `tiny_settings`."""
    composed = compose_config(tiny_settings(folder, *overrides, name=name))
    validate(composed.config, composed.problems)
    return composed.config


def tiny_trainer(config: dict[str, Any], *, sharded: bool = False) -> Trainer:
    """The trainer that the job would build, not yet started, on any rank. `sharded`: of weights that the ranks share out."""
    torch.set_num_threads(1)
    run = Run.start(config)
    AcceleratorState._reset_state()  # one process makes many runs here, of different precision
    accelerator = Accelerator(cpu=True, mixed_precision=config["training"]["mixed_precision"])
    torch.manual_seed(config["run"]["seed"])
    encoder = build_encoder(config)
    teachers = build_teachers(config)
    loss = build_learned(config, encoder, teachers)
    for teacher in teachers.values():
        teacher.load("cpu")
    distributed.broadcast_tensors([*encoder.parameters(), *loss.parameters()])
    if sharded:
        sharding.shard(encoder, {"bf16": torch.bfloat16}.get(accelerator.mixed_precision))
    trackers = build_trackers(config, run)
    loader = build_loader(config, encoder, teachers)
    negatives = build_mining(config, encoder, loader.sampler.mixture.sources, run.dir, None)
    trainer = build_trainer(config, run, encoder, loss, loader, accelerator, dict, trackers, teachers, negatives)
    trainer.run = run  # type: ignore[attr-defined]  # keeps the lock of the directory
    return trainer


def weights(trainer: Trainer) -> torch.Tensor:
    """All trainable weights in one vector."""
    return torch.cat([parameter.detach().flatten() for _, parameter in trainer.named])


def train_tiny(config: dict[str, Any], *, stop_after: int | None = None) -> tuple[int, torch.Tensor, list[Any]]:
    """Train from wherever the directory stands. Returns updates made in all, weights, and the texts' ids of every step.

    `stop_after`: save a checkpoint there and go no further, like a run that was told to stop.
    """
    trainer = tiny_trainer(config)
    seen: list[Any] = []
    steps = trainer.loader.steps

    def watched(start: int, stop: int):
        for micro_batches in steps(start, stop):
            seen.append([b.relation.document_ids.tolist() for b in micro_batches])
            yield micro_batches

    trainer.loader.steps = watched  # type: ignore[method-assign]
    start = trainer.resume()
    if stop_after is not None:
        trainer.total_steps = min(trainer.total_steps, stop_after)  # the schedule keeps the real total
    done = trainer.fit(start)
    trainer.save(done)
    if trainer.negatives is not None:
        trainer.negatives.close()
    for tracker in trainer.trackers:
        tracker.finish()
    return done, weights(trainer), seen
