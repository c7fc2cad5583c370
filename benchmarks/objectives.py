"""Each family of objectives against plain InfoNCE, at equal budget, on real data, three seeds.

    python benchmarks/objectives.py run [--shard 0/2] [--only stackfaq/gist,...]   what is not measured yet; can be stopped
    python benchmarks/objectives.py table                                          results -> docs/objectives.md

Equal budget: the same student, rows, steps, batch, learning rate and lengths for all losses of a task; a teacher's or a
guide's forward passes come on top. Every softmax has the temperature of the plain one (0.05), so that what is compared is the
objective; published temperatures are in the YAMLs. Intervals are Student's t over seeds, of the difference to plain InfoNCE
with the same seed (same batches): with three seeds only large differences show.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.objective_tasks import SUB_MODELS, TEACHER, measures, prepare, student
from embedtrain.assemble import build_encoder, build_teachers
from embedtrain.config.compose import compose_config
from embedtrain.encoder import Encoder
from embedtrain.training.building import (
    build_learned,
    build_loader,
    build_named,
    build_schedule,
    build_step,
)
from embedtrain.training.optim import adamw, parameter_groups, set_learning_rates

RESULTS = Path(__file__).parent / "results" / "objectives.jsonl"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "objectives.md"
SEEDS = (0, 1, 2)
STEPS = 40


@dataclass(frozen=True)
class Case:
    task: str
    name: str
    overrides: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.task}/{self.name}"


def taught(name: str) -> tuple[str, ...]:
    """The whole MiniLM, frozen, as a teacher."""
    return (
        f"+teacher@teachers.{name}=online",
        f"teachers.{name}.model={TEACHER}",
        f"teachers.{name}.max_document_length=64",
    )


T = "loss.temperature=0.05"
SPREAD = ("loss=weighted_sum", "+loss@loss.losses.spread=spread_out", "loss.losses.contrast.temperature=0.05")
TEACHER_KL = ("loss.temperature=0.05", "loss.teacher_temperature=0.05", *taught("teacher"))
CONTRASTIVE: dict[str, tuple[str, ...]] = {
    "infonce": ("loss=infonce", T),
    "hardness_weighted": ("loss=hardness_weighted", T),
    "focal": ("loss=infonce", T, "loss.focal=0.5"),
    "unime (filter, 8 hardest)": ("loss=unime", T),
    "gist (guide)": ("loss=gist", T, *taught("guide")),
    "all positives, summed": ("loss=infonce", T, "loss.positives=summed", "data.num_positives=3"),
    "sigmoid": ("loss=sigmoid",),
    "masked words first": ("loss=infonce", T),
    "triplet": ("loss=triplet",),
    "infonce + spread_out": (*SPREAD, "+loss.weights.spread=0.1"),
    "matryoshka": ("loss=matryoshka", "loss.dims=[384,192,96,48]", "loss.inner.temperature=0.05"),
    "colbert (multi-vector)": ("loss=colbert", "pooling=multi_vector", "loss.temperature=0.5"),
    "in_batch_kl (teacher)": ("loss=in_batch_kl", *TEACHER_KL),
}
PAIRS = json.dumps([list(pair) for pair in SUB_MODELS]).replace('"', "")
LAYERS = ("loss.inner.temperature=0.05", "loss.kl_temperature=0.05")
CASES = [
    *(Case("stackfaq", name, overrides) for name, overrides in CONTRASTIVE.items()),
    *(Case("planted", name, CONTRASTIVE[name]) for name in ("infonce", "unime (filter, 8 hardest)", "gist (guide)")),
    *(Case("scifact", name, CONTRASTIVE[name]) for name in ("infonce", "hardness_weighted")),
    Case("layers", "infonce", CONTRASTIVE["infonce"]),
    Case("layers", "starbucks (fixed list)", ("loss=starbucks", f"loss.pairs={PAIRS}", *LAYERS)),
    Case(
        "layers",
        "2DMSE (drawn)",
        ("loss=matryoshka_2d", "loss.layers=[1,2,3]", "loss.dims=[48,96,192,384]", "loss.kl_over=in_batch", *LAYERS),
    ),
    Case("distil", "infonce", CONTRASTIVE["infonce"]),
    Case("distil", "leaf (embedding match)", ("loss=leaf", *taught("teacher"))),
    Case("stsb", "infonce", ("loss=infonce", T, "data.path={work}/stsb_pairs.jsonl")),
    *(Case("stsb", name, (f"loss={name}",)) for name in ("cosent", "angle", "pearson", "codiemb")),
    Case("banking77", "infonce", ("loss=infonce", T)),
    Case("banking77", "class_masked", ("loss=class_masked", T)),
    *(Case("banking77", name, (f"loss={name}",)) for name in ("online_triplet", "multi_similarity")),
]
# An objective over tokens for the first half of the steps.
FIRST = {"masked words first": ("objective=masked_lm",)}
# Rows, layers of the student, longest query and document, hard negatives, columns.
SETTINGS: dict[str, tuple[str, int, int, int, int]] = {
    "stackfaq": ("stackfaq", 2, 24, 32, 1),
    "planted": ("planted", 2, 24, 32, 0),
    "layers": ("stackfaq", 4, 24, 32, 0),
    "distil": ("stackfaq", 2, 24, 32, 1),
    "scifact": ("scifact", 2, 32, 64, 1),
    "stsb": ("stsb", 2, 48, 48, 0),
    "banking77": ("banking77", 2, 32, 32, 0),
}
COLUMNS = {
    "stsb": "data.sources.pairs.columns={query: query, positives: positives, scores: scores}",
    "banking77": "data.sources.pairs.columns={query: query, positives: positives, label: label}",
}


def config_of(case: Case, seed: int, work: Path) -> dict[str, Any]:
    rows, layers, query, document, negatives = SETTINGS[case.task]
    own = [override.format(work=work) if "{work}" in override else override for override in case.overrides]
    composed = compose_config(
        [
            "data=pairs",
            f"data.path={work / rows}.jsonl",
            f"backbone.name={student(work, layers)}",
            f"encoder.max_query_length={query}",
            f"encoder.max_document_length={document}",
            f"data.num_negatives={negatives}",
            "data.num_workers=0",
            "training.global_batch_size=32",
            f"training.max_steps={STEPS}",
            "training.chunk_tokens=4096",
            "optim.learning_rate=1e-4",
            f"run.seed={seed}",
            *(
                []
                if case.name == "infonce" and case.task == "stsb"
                else [COLUMNS[case.task]]
                if case.task in COLUMNS
                else []
            ),
            *own,
        ]
    )
    if composed.problems:
        raise SystemExit(f"{case.key}: {composed.problems}")
    return composed.config


def train(case: Case, seed: int, work: Path) -> Encoder:
    """The parts of a training job, without its run directory."""
    config = config_of(case, seed, work)
    torch.manual_seed(seed)
    encoder = build_encoder(config)
    first = FIRST.get(case.name)
    if first is not None:
        words = Case(case.task, case.name, ("loss=null", *first))
        make_steps(config_of(words, seed, work), encoder, STEPS // 2)
    make_steps(config, encoder, STEPS if first is None else STEPS // 2)
    return encoder


def make_steps(config: dict[str, Any], encoder: Encoder, steps: int) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision=config["training"]["mixed_precision"] or "no")
    teachers = build_teachers(config)
    learned = build_learned(config, encoder, teachers)
    for teacher in teachers.values():
        teacher.load("cpu")
    loader = build_loader(config, encoder, teachers)
    step = build_step(config, encoder, learned, accelerator, teachers)
    named = build_named(config, encoder, learned)
    optim = config["optim"]
    keys = ("learning_rate", "weight_decay", "head_learning_rate", "layer_decay", "groups")
    optimizer = adamw(
        parameter_groups(named, **{key: optim[key] for key in keys}), betas=tuple(optim["betas"]), eps=optim["eps"]
    )
    schedule = build_schedule(optim, steps)
    for number, batches in enumerate(loader.steps(0, steps)):
        encoder.train()
        set_learning_rates(optimizer, schedule(number))
        step(batches, number)
        torch.nn.utils.clip_grad_norm_([p for _, p in named], config["training"]["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def results() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def run(work: Path, shard: str, only: list[str]) -> None:
    torch.set_num_threads(1)
    prepare(work)
    number, count = map(int, shard.split("/"))
    asked = [case for case in CASES if not only or case.key in only]
    before = [Case(task, "before", CONTRASTIVE["infonce"]) for task in SETTINGS if not only]
    jobs = [(case, 0) for case in before] + [(case, seed) for seed in SEEDS for case in asked]
    measure = measures()
    for case, seed in jobs[number::count]:
        if any((r["task"], r["name"], r["seed"]) == (case.task, case.name, seed) for r in results()):
            continue
        started = time.process_time()
        encoder = build_encoder(config_of(case, 0, work)) if case.name == "before" else train(case, seed, work)
        trained = time.process_time() - started
        found = {
            "task": case.task,
            "name": case.name,
            "seed": seed,
            "measured": {key: round(value, 3) for key, value in measure[case.task](encoder).items()},
            "cpu_seconds_of_training": round(trained, 1),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(case.key, seed, found["measured"], f"{trained:.0f} s", flush=True)


def difference(values: list[float]) -> str:
    """Mean and 95 % interval of differences, by Student's t."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    sign = " \\*" if abs(mean) > half else ""
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]{sign}"


def of(found: list[dict[str, Any]], task: str, name: str, key: str) -> dict[int, float]:
    return {
        r["seed"]: r["measured"][key] for r in found if (r["task"], r["name"]) == (task, name) and key in r["measured"]
    }


def table(task: str, keys: list[str]) -> list[str]:
    found = results()
    names = list(dict.fromkeys(["before", *(case.name for case in CASES if case.task == task)]))
    head = ["objective", *(f"{key} | difference to infonce" for key in keys)]
    lines = ["| " + " | ".join(head) + " |", "|---" * (1 + 2 * len(keys)) + "|"]
    for name in names:
        cells = [name]
        for key in keys:
            own, plain = of(found, task, name, key), of(found, task, "infonce", key)
            both = sorted(set(own) & set(plain))
            cells.append(f"{sum(own.values()) / len(own):.2f}" if own else "")
            cells.append(
                difference([own[s] - plain[s] for s in both]) if both and name not in ("infonce", "before") else ""
            )
        if any(cells[1:]):
            lines.append("| " + " | ".join(cells) + " |")
    return lines


SECTIONS = [
    ("stackfaq", "Questions and answers (StackFAQ)", ["ndcg@10", "separation", "ndcg@10 of 48"]),
    ("planted", "The same with unmarked answers planted", ["ndcg@10"]),
    ("scifact", "Claims and abstracts (SciFact)", ["ndcg@10", "separation"]),
    ("layers", "Shallower and shorter models (StackFAQ, 4 layers)", ["mean", *(f"{a}x{b}" for a, b in SUB_MODELS)]),
    (
        "distil",
        "Student queries, teacher documents (StackFAQ)",
        ["ndcg@10 with the teacher's documents", "of 96 dims", "of int8", "cosine to the teacher", "ndcg@10 alone"],
    ),
    ("stsb", "Graded pairs (STS-B)", ["spearman"]),
    ("banking77", "Classes (Banking77)", ["1-NN accuracy"]),
]


@dataclass(frozen=True)
class Claim:
    """That one measured number is above another, as a paper says."""

    text: str
    task: str
    above: tuple[str, str]  # (objective, measure)
    below: tuple[str, str]
    slack: float = 0.0  # points that the first may fall short and the claim still stand
    given: Claim | None = None  # says nothing where this one does not hold

    def gaps(self, found: list[dict[str, Any]]) -> list[float]:
        first, second = (of(found, self.task, *which) for which in (self.above, self.below))
        return [first[s] - second[s] for s in sorted(set(first) & set(second))]

    def verdict(self, found: list[dict[str, Any]]) -> str:
        if self.given is not None and self.given.verdict(found) != "holds here":
            return "says nothing: the one before does not hold"
        values = [gap + self.slack for gap in self.gaps(found)]
        if len(values) < 2:
            return "not measured"
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        mean = sum(values) / len(values)
        return "holds here" if mean - half > 0 else "does not hold here" if mean + half < 0 else "not decided"

    def row(self, found: list[dict[str, Any]]) -> str:
        gaps = self.gaps(found)
        return f"| {self.text} | {difference(gaps) if gaps else ''} | {self.verdict(found)} |"


FULL, SHORT = "ndcg@10", "ndcg@10 of 48"
ASYMMETRIC = "ndcg@10 with the teacher's documents"
LEAF = "leaf (embedding match)"
ALIGNED = Claim(
    "LEAF aligns a student with its teacher's documents", "distil", (LEAF, ASYMMETRIC), ("infonce", ASYMMETRIC)
)
CLAIMS = [
    Claim(
        "Hardness weights separate positives from near negatives (LLaVE), StackFAQ",
        "stackfaq",
        ("hardness_weighted", "separation"),
        ("infonce", "separation"),
    ),
    Claim("the same, SciFact", "scifact", ("hardness_weighted", "separation"), ("infonce", "separation")),
    Claim(
        "A fixed list of sub-models beats drawn ones (Starbucks), mean of the list",
        "layers",
        ("starbucks (fixed list)", "mean"),
        ("2DMSE (drawn)", "mean"),
    ),
    Claim("Matryoshka lifts short vectors (48 of 384)", "stackfaq", ("matryoshka", SHORT), ("infonce", SHORT)),
    Claim("... and costs the full one at most a point", "stackfaq", ("matryoshka", FULL), ("infonce", FULL), slack=1.0),
    Claim("A guide helps where answers are unmarked (GIST)", "planted", ("gist (guide)", FULL), ("infonce", FULL)),
    ALIGNED,
    Claim(
        "... and stays ahead when both are cut to 96 of 384",
        "distil",
        (LEAF, "of 96 dims"),
        ("infonce", "of 96 dims"),
        given=ALIGNED,
    ),
    Claim(
        "... and in int8 loses at most a point",
        "distil",
        (LEAF, "of int8"),
        (LEAF, ASYMMETRIC),
        slack=1.0,
        given=ALIGNED,
    ),
]


NOTES = """
## How to read it

- The student is the cut-off beginning of a model, 40 steps from there: everything that needs long training (masked words, LEAF,
  Matryoshka at full size) pays here and has no time to win. LEAF's student comes nearer to its teacher in cosine and ranks
  worse: probably all texts move to the teacher's mean first, which was not looked into. The paper trains on millions of texts.
- *hardness_weighted* is its YAML: weights, and a second direction (documents to queries). The separation is that of both.
- *all positives, summed* reads three answers per question, so it sees more text in the same steps.
- *masked words first* gives half of its steps to words.
- *unime* keeps eight negatives of sixty, *gist* takes out hard negatives too: both learn from fewer, which pays where false
  negatives are many. With unmarked answers planted the guide is nearer to plain InfoNCE than without; ahead it is not.
- One seed alone on StackFAQ, then left out to save time, differences to plain InfoNCE: decoupled +0.40, qwen3 -0.96, gte -1.13,
  f2llm -2.92, cross_batch_memory -3.79 (it starts at step 10), score_kl with a teacher -10.95.
- Not measured here: scores of a cross-encoder (no such model at hand), SPLADE (the student has no language-model head), BGE-M3,
  Gaussians, mixed negatives, late chunks. They are compared with their formulas, not with each other.
"""


def write_page() -> None:
    lines = [
        "# What was measured",
        "",
        "Written by `python benchmarks/objectives.py table` from `benchmarks/results/objectives.jsonl`. Read the size of the",
        "experiment before the numbers: it is small, and shows which way a loss pulls rather than what it would give at scale.",
        "",
        *(__doc__ or "")[(__doc__ or "").index("Equal budget") :].strip().splitlines(),
        "",
        f"{STEPS} steps of 32 queries, learning rate 1e-4, AdamW; one thread of a shared 2-core AMD EPYC, torch",
        f"{torch.__version__}.",
        r"\* marks an interval without 0. Rows, splits and measures: `benchmarks/objective_tasks.py`.",
    ]
    for task, title, keys in SECTIONS:
        lines += ["", f"## {title}", "", *table(task, keys)]
    found = results()
    lines += ["", "## Claims of papers, in small", "", "| claim | difference | verdict |", "|---|---|---|"]
    lines += [*(claim.row(found) for claim in CLAIMS), *NOTES.rstrip().splitlines()]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--shard", default="0/1", help="this process of how many")
    parser.add_argument("--only", default="", help="task/name of cases, with commas")
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"), help="rows and students")
    arguments = parser.parse_args()
    commands = {
        "run": partial(run, arguments.work.resolve(), arguments.shard, [c for c in arguments.only.split(",") if c]),
        "table": write_page,
    }
    commands[arguments.command]()


if __name__ == "__main__":
    main()
