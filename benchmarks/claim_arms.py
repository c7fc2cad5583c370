"""The arms of claims.py: a few training runs in a row, or a merge of such, and what is measured of them.

Arms that are compared have the same student (two layers of MiniLM), steps, batches of 32, learning rate and lengths. Training
is in bf16; all is measured in fp32, on texts that training did not see:

    faq         nDCG@10 x 100 of StackFAQ's test questions (375 among 719 answers)
    asymmetric  the same, the answers embedded by the whole MiniLM, which is the teacher
    sts         Spearman x 100 of every second pair of STS-B's test set
    banking     1-NN accuracy x 100 of every fourth test message of Banking77 among 10 training messages of each class
"""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor

from benchmarks.objective_tasks import DATA, TEACHER, Retrieval, beir, read, student, with_negatives, write
from benchmarks.objective_tasks import sts as graded_pairs
from benchmarks.objectives import make_steps
from embedtrain.assemble import build_encoder, build_sources, build_teachers
from embedtrain.config.compose import compose_config
from embedtrain.encoder import Encoder
from embedtrain.evaluation.search import top_k
from embedtrain.export.load import load_encoder
from embedtrain.merging.methods.linear import Linear
from embedtrain.merging.methods.slerp import Slerp
from embedtrain.merging.states import merge_states
from embedtrain.teachers.cached import CachedTeacher
from embedtrain.teachers.fill import fill

CELLS = Path(__file__).parent / "results" / "claims.jsonl"
SEEDS = (0, 1, 2, 3, 4)
STEPS, LONG = 40, 120
QUERY, DOCUMENT = 24, 32  # tokens


# ------------------------------------------------------------------------------------------------------------- arms


@dataclass(frozen=True)
class Stage:
    steps: int
    sources: Mapping[str, int]  # file of rows -> its share of the batches, or of each batch where they are blended
    overrides: tuple[str, ...]
    negatives: int = 0  # hard ones per query


@dataclass(frozen=True)
class Arm:
    """Stages of training, or the names of arms to merge."""

    name: str
    measures: tuple[str, ...]
    stages: tuple[Stage, ...] = ()
    merges: tuple[str, ...] = ()
    method: Linear | Slerp | None = None
    is_kept: bool = False  # its weights are merged later
    reads_corpus: bool = False  # it is measured behind a sample of StackFAQ's answers
    measured_as: tuple[str, ...] = ()  # settings of the encoder that is measured, where they are not those of training


INFONCE = ("loss=infonce", "loss.temperature=0.05")
# Retrieval and graded pairs, each with its own loss.
ROUTED = ("loss=routed", "loss.default.temperature=0.05", "+loss@loss.losses.sts=codiemb")
BLENDED = (*INFONCE, "data.batching=blended")
OWN = "loss.negatives=hard_only"
CONTEXT = ("backbone=contextual", "backbone.num_context=32")
ROUNDED = ("backbone.quantise={bits: 4, block: 32}",)
LEAF = (
    "loss=leaf",
    "+teacher@teachers.teacher=cached",
    "teachers.teacher.store={work}/teacher",
    f"teachers.teacher.filled_by.model={TEACHER}",
    f"teachers.teacher.filled_by.max_query_length={QUERY}",
    f"teachers.teacher.filled_by.max_document_length={2 * DOCUMENT}",
)
TASKS, CLASSES, DISTILLED = ("faq", "sts"), ("faq", "banking"), ("faq", "asymmetric")
MIXTURES = ("mixture 1:3", "routed", "mixture 3:1")


def routed(faq: int, graded: int) -> tuple[Stage, ...]:
    return (Stage(STEPS, {"faq": faq, "sts": graded}, ROUTED),)


def alone(loss: tuple[str, ...], rate: str) -> tuple[Stage, ...]:
    return (Stage(LONG, {"faq": 1}, (*loss, f"optim.learning_rate={rate}")),)


ARMS = [
    Arm("one loss", TASKS, (Stage(STEPS, {"faq": 1, "sts_pairs": 1}, INFONCE),)),
    Arm("routed", TASKS, routed(1, 1), is_kept=True),
    Arm("mixture 1:3", TASKS, routed(1, 3), is_kept=True),
    Arm("mixture 3:1", TASKS, routed(3, 1), is_kept=True),
    Arm("soup", TASKS, merges=MIXTURES, method=Linear()),
    Arm("slerp", TASKS, merges=MIXTURES, method=Slerp()),
    Arm("one stage", CLASSES, (Stage(STEPS, {"faq": 1, "banking": 1}, BLENDED, 2),)),
    Arm("one stage (own negatives)", CLASSES, (Stage(STEPS, {"faq": 1, "banking": 1}, (*BLENDED, OWN), 2),)),
    Arm(
        "two stages",
        CLASSES,
        (
            Stage(STEPS // 2, {"faq": 1}, INFONCE, 2),
            Stage(STEPS // 2, {"faq": 1, "banking": 1}, (*BLENDED, OWN), 2),
        ),
    ),
    Arm("leaf long 5e-4", DISTILLED, alone(LEAF, "5e-4")),
    Arm("infonce long 5e-4", DISTILLED, alone(INFONCE, "5e-4")),
    Arm("leaf long 1e-4", DISTILLED, alone(LEAF, "1e-4")),
    Arm("infonce long 1e-4", DISTILLED, alone(INFONCE, "1e-4")),
    Arm("context of the corpus", ("faq",), alone((*INFONCE, *CONTEXT), "1e-4"), reads_corpus=True),
    Arm("no context", ("faq",), alone((*INFONCE, *CONTEXT), "1e-4")),
    Arm("rounded to 4 bits afterwards", ("faq",), alone(INFONCE, "1e-4"), measured_as=ROUNDED),
    Arm("trained for 4 bits", ("faq",), alone((*INFONCE, *ROUNDED), "1e-4")),
]
COLUMNS = {
    "sts": "{query: query, positives: positives, scores: scores}",
    "banking": "{query: query, positives: positives, negatives: negatives}",
}


def config_of(stage: Stage, seed: int, work: Path) -> dict[str, Any]:
    overrides = [
        f"backbone.name={work / 'student_2'}",
        f"encoder.max_query_length={QUERY}",
        f"encoder.max_document_length={DOCUMENT}",
        f"data.num_negatives={stage.negatives}",
        "data.num_workers=0",
        "training.global_batch_size=32",
        f"training.max_steps={stage.steps}",
        "training.chunk_tokens=4096",
        "training.mixed_precision=bf16",
        "optim.learning_rate=1e-4",
        f"run.seed={seed}",
    ]
    for name, weight in stage.sources.items():
        at = f"data.sources.{name}"
        overrides += [f"+source@{at}=pairs", f"{at}.path={work / name}.jsonl", f"{at}.weight={weight}"]
        overrides += [f"{at}.columns={COLUMNS[name]}"] if name in COLUMNS else []
    overrides += [override.replace("{work}", str(work)) for override in stage.overrides]
    composed = compose_config(overrides)
    if composed.problems:
        raise SystemExit(f"{stage}: {composed.problems}")
    return composed.config


# ------------------------------------------------------------------------------------------------------------- rows


def prepare(work: Path) -> None:
    """Writes student, rows and the teacher's vectors, once."""
    if (work / "done").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    student(work, 2)
    write(work / "faq.jsonl", with_negatives(beir(DATA / "faq-stackfaq", "train"), teacher()))
    graded = list(graded_pairs("train"))
    write(work / "sts.jsonl", ({"query": a, "positives": [b], "scores": [s]} for a, b, s in graded))
    # Who has one loss for all takes the pairs of a high grade (NV-Embed: 4 of 5).
    write(work / "sts_pairs.jsonl", ({"query": a, "positives": [b]} for a, b, s in graded if s >= 0.8))
    write(work / "banking.jsonl", classes())
    fill_store(work)
    (work / "done").touch()


def teacher() -> Encoder:
    encoder = load_encoder(TEACHER).requires_grad_(False)
    encoder.tokenizer.max_length |= {"query": QUERY, "document": 2 * DOCUMENT}
    return encoder


def classes() -> Iterable[dict[str, Any]]:
    """A message, another one of its class, and two of other classes (NV-Embed v2's example-based labels)."""
    draw = random.Random(0)
    by_class: dict[str, list[str]] = {}
    for row in read(DATA / "cls-banking77" / "train.jsonl.gz"):
        by_class.setdefault(row["label"], []).append(row["text"])
    for label, texts in by_class.items():
        others = [other for other in by_class if other != label]
        for text in texts:
            positive = draw.choice([other for other in texts if other != text])
            negatives = [draw.choice(by_class[other]) for other in draw.sample(others, 2)]
            yield {"query": text, "positives": [positive], "negatives": negatives}


def fill_store(work: Path) -> None:
    config = config_of(alone(LEAF, "1e-4")[0], 0, work)
    (cached,) = build_teachers(config).values()
    assert isinstance(cached, CachedTeacher)
    (source,) = build_sources(config).values()
    fill(cached, (source[row] for row in range(len(source))), rows=len(source), device="cpu")


# --------------------------------------------------------------------------------------------------------- measures


@cache
def questions() -> Retrieval:
    return beir(DATA / "faq-stackfaq", "test")


@cache
def taught_documents() -> Tensor:
    return teacher().encode(questions().documents, role="document")


def faq(encoder: Encoder) -> list[float]:
    task = questions()
    return task.ndcgs(encoder.encode(task.queries), encoder.encode(task.documents, role="document"))


def asymmetric(encoder: Encoder) -> list[float]:
    return questions().ndcgs(encoder.encode(questions().queries), taught_documents())


def sts(encoder: Encoder) -> list[float]:
    first, second, scores = zip(*list(graded_pairs("test"))[::2], strict=True)
    similar = (encoder.encode(first) * encoder.encode(second)).sum(1)
    return spearman_parts(similar.tolist(), scores)


def spearman_parts(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Of each pair the product of its two standardised ranks, x 100: their mean is Spearman's correlation."""
    one, other = (stats.zscore(stats.rankdata(values)) for values in (first, second))
    return [100 * float(part) for part in one * other]


def banking(encoder: Encoder) -> list[float]:
    by_class: dict[str, list[str]] = {}
    for row in read(DATA / "cls-banking77" / "train.jsonl.gz"):
        by_class.setdefault(row["label"], []).append(row["text"])
    shown = [(text, label) for label, texts in sorted(by_class.items()) for text in texts[:10]]
    asked = list(read(DATA / "cls-banking77" / "test.jsonl"))[::4]
    _, found = top_k(encoder.encode([row["text"] for row in asked]), [encoder.encode([text for text, _ in shown])], 1)
    return [100.0 * (shown[i][1] == row["label"]) for (i,), row in zip(found.tolist(), asked, strict=True)]


MEASURES: dict[str, Callable[[Encoder], list[float]]] = {
    "faq": faq,
    "asymmetric": asymmetric,
    "sts": sts,
    "banking": banking,
}


# ---------------------------------------------------------------------------------------------------------- running


def trained(arm: Arm, seed: int, work: Path) -> Encoder:
    configs = [config_of(stage, seed, work) for stage in arm.stages]
    torch.manual_seed(seed)
    encoder = build_encoder(configs[0])
    for stage, config in zip(arm.stages, configs, strict=True):
        make_steps(config, encoder, stage.steps)
    if arm.is_kept:
        save_file(encoder.state_dict(), weights(arm.name, seed, work))
    if not arm.measured_as:
        return encoder
    stage = replace(arm.stages[-1], overrides=(*arm.stages[-1].overrides, *arm.measured_as))
    measured = build_encoder(config_of(stage, seed, work))
    measured.load_state_dict(encoder.state_dict())
    return measured


def merged(arm: Arm, seed: int, work: Path) -> Encoder:
    assert arm.method is not None
    encoder = build_encoder(config_of(ARMS[0].stages[0], seed, work))
    states = [load_file(weights(name, seed, work)) for name in arm.merges]
    encoder.load_state_dict(dict(merge_states(arm.method, states)))
    return encoder


def weights(name: str, seed: int, work: Path) -> Path:
    return work / f"{name} {seed}.safetensors"


def results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CELLS.read_text(encoding="utf-8").splitlines()] if CELLS.exists() else []


def run(work: Path, seeds: list[int], only: list[str]) -> None:
    torch.set_num_threads(1)
    prepare(work)
    for arm, seed in [(arm, seed) for arm in ARMS for seed in seeds if not only or arm.name in only]:
        if any((cell["arm"], cell["seed"]) == (arm.name, seed) for cell in results()):
            continue
        started = time.process_time()
        encoder = trained(arm, seed, work) if arm.stages else merged(arm, seed, work)
        seconds = time.process_time() - started
        if arm.reads_corpus:
            encoder.set_context(questions().documents)
        measured = {name: MEASURES[name](encoder) for name in arm.measures}
        cell = {
            "arm": arm.name,
            "seed": seed,
            "cpu_seconds": round(seconds, 1),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "measured": {name: [round(value, 2) for value in values] for name, values in measured.items()},
        }
        with CELLS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
        means = {name: round(mean(values), 2) for name, values in measured.items()}
        print(arm.name, seed, means, f"{seconds:.0f} s", flush=True)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
