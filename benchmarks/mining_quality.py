"""What mined negatives do to a model: each strategy against in-batch negatives alone, with unmarked answers in the corpus.

    python benchmarks/mining_quality.py run [--shard 0/2] [--only stackfaq/top_k,...]   what is not measured yet; can be stopped
    python benchmarks/mining_quality.py table              -> benchmarks/results/mining_quality.md

    stackfaq   FAQ questions -> answers (874 questions, 719 answers, 5.8 of them for each question). Training and miner know one
               answer of each question, drawn; the others are planted false negatives, of the kind that real corpora have.
               The corpus also has an edited copy of every answer that is known: one word of it is another one
    scifact    claims -> abstracts (809 claims, 5,183 abstracts), nothing planted
    limit      who likes what (1,000 queries, 46 documents), two answers each, one of them known; counted, and not trained

Equal budget: the same student (two layers of MiniLM), known answers, steps (one pass over the FAQ questions), batch and learning
rate; one hard negative a row where there is any, so that in-batch alone computes about two thirds. The miner searches with the
whole MiniLM. `oracle` is top_k that knows all answers: what a filter that never errs would give. Measured is nDCG@10 x 100 on the
test questions, with all answers.

The first interval is Student's t over the seeds, paired (same batches); the second the paired bootstrap over queries, of the mean
over the seeds. A difference counts as decided where both leave out zero.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.objective_tasks import DATA, TEACHER, Retrieval, beir, cut, student, write
from benchmarks.objectives import make_steps
from embedtrain.assemble import build_encoder
from embedtrain.config.build import build
from embedtrain.config.compose import compose_config
from embedtrain.data.sources import JsonLines
from embedtrain.evaluation.statistics import paired_bootstrap
from embedtrain.export.load import load_encoder
from embedtrain.mining.records import NO_DOCUMENT

RESULTS = Path(__file__).parent / "results"
CELLS, PAGE = RESULTS / "mining_quality.jsonl", RESULTS / "mining_quality.md"
SEEDS = (0, 1, 2)
STEPS, NEGATIVES = 27, 1
PLAIN, ORACLE = "in-batch only", "oracle"

# Options of the miner; None: no hard negatives.
STRATEGIES: dict[str, tuple[str, ...] | None] = {
    PLAIN: None,
    "random": ("miner=top_k", "miner.draw=uniform", "miner.depth=5000"),
    "top_k, copies not looked for": ("miner=top_k", "miner.near_duplicates=null"),
    "top_k": ("miner=top_k",),
    "shifted": ("miner=shifted",),
    "sampled": ("miner=sampled",),
    "margin": ("miner=margin",),
    "percent_of_positive": ("miner=percent_of_positive",),
    "percent_of_positive, sampled": ("miner=percent_of_positive", "miner.draw=uniform"),
    "consistent": ("miner=consistent",),
    "bm25": ("miner=bm25",),
    "hybrid": ("miner=hybrid",),
    ORACLE: ("miner=top_k",),
}
TRAINED = {
    "stackfaq": list(STRATEGIES),
    "scifact": [PLAIN, "random", "top_k", "sampled", "percent_of_positive", "bm25"],
    "limit": [],
}
COUNTED = {
    "stackfaq": TRAINED["stackfaq"],
    "limit": [name for name in STRATEGIES if name not in (PLAIN, "shifted", "sampled")],
}
LENGTHS = {"stackfaq": (24, 32), "scifact": (32, 64), "limit": (24, 256)}  # of query and document, in tokens


@dataclass(frozen=True)
class Task:
    train: Retrieval  # with all answers
    test: Retrieval
    known: list[int]  # the answer of each training query that training and miner are told
    copies: dict[int, str]  # of documents, edited


@cache
def task_of(name: str) -> Task:
    draw = random.Random(0)
    if name == "limit":
        train = test = beir(DATA / "ir-limit-small", "test")
    else:
        folder = {"stackfaq": "faq-stackfaq", "scifact": "ir-scifact"}[name]
        train, test = beir(DATA / folder, "train"), beir(DATA / folder, "test")
        test = cut(test, 1000) if name == "scifact" else test
    known = [draw.choice(sorted(answers)) for answers in train.answers]
    edited = sorted(set(known)) if name == "stackfaq" else []
    return Task(train, test, known, {d: edit(train.documents[d], draw) for d in edited})


def edit(text: str, draw: random.Random) -> str:
    """The text with another word in the place of one."""
    words = text.split()
    words[draw.randrange(len(words))] = "otherwise"
    return " ".join(words)


# ---------------------------------------------------------------------------------------------------------- mining


def rows_of(name: str, strategy: str, seed: int, work: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The training rows, and what their negatives are."""
    task = task_of(name)
    told = [{d} for d in task.known] if strategy != ORACLE else task.train.answers
    documents = task.train.documents
    rows = [
        {"query": query, "positives": [documents[d] for d in sorted(answers)]}
        for query, answers in zip(task.train.queries, told, strict=True)
    ]
    options = STRATEGIES[strategy]
    if options is not None:
        write(work / f"{name}.jsonl", rows)
        write(work / f"{name}_corpus.jsonl", ({"text": text} for text in [*documents, *task.copies.values()]))
        found = mine(name, [*options, f"miner.seed={seed}"], work)
        for row, query in zip(rows, found.data.query_of_row, strict=True):
            row["negatives"] = [
                found.data.documents[d] for d in found.mined.documents[query].tolist() if d != NO_DOCUMENT
            ]
            row["is_kept"] = bool(found.mined.kept_queries[query])
    for row, document in zip(rows, task.known, strict=True):
        row["positives"] = [documents[document]]
    counts = count(task, rows)
    return [{k: v for k, v in row.items() if k != "is_kept"} for row in rows if row.get("is_kept", True)], counts


def mine(name: str, options: list[str], work: Path) -> Any:
    composed = compose_config(
        [
            "data=pairs",
            f"data.path={work / name}.jsonl",
            *options,
            f"miner.num_negatives={NEGATIVES}",
            f"miner.corpus={work / name}_corpus.jsonl",
            f"miner.store={work / 'store'}",
        ]
    )
    if composed.problems:
        raise SystemExit(f"{name}: {composed.problems}")
    encoder = load_encoder(TEACHER).requires_grad_(False)
    encoder.tokenizer.max_length.update(query=LENGTHS[name][0], document=2 * LENGTHS[name][1])
    return build(composed.config["miner"]).mine(JsonLines(path=f"{work / name}.jsonl"), name, encoder)


def count(task: Task, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of 100 negatives, how many are unmarked answers (or copies of such), and how many copies of the known answer."""
    number = {text: d for d, text in enumerate(task.train.documents)}
    copied = {text: d for d, text in task.copies.items()}
    total = hidden = copies = 0
    kept = [i for i, row in enumerate(rows) if row.get("is_kept", True)]
    for i in kept:
        for text in rows[i].get("negatives", []):
            document = copied[text] if text in copied else number[text]
            total += 1
            hidden += document in task.train.answers[i] and document != task.known[i]
            copies += document == task.known[i]
    share = 100 / max(total, 1)
    return {"rows": len(kept), "negatives": total, "unmarked": share * hidden, "copies": share * copies}


# -------------------------------------------------------------------------------------------------------- training


def config_of(name: str, rows: Path, negatives: int, seed: int, work: Path) -> dict[str, Any]:
    query, document = LENGTHS[name]
    composed = compose_config(
        [
            "data=pairs",
            f"data.path={rows}",
            f"backbone.name={student(work, 2)}",
            f"encoder.max_query_length={query}",
            f"encoder.max_document_length={document}",
            f"data.num_negatives={negatives}",
            "data.num_workers=0",
            "training.global_batch_size=32",
            f"training.max_steps={STEPS}",
            "training.chunk_tokens=4096",
            "training.mixed_precision=bf16",
            "optim.learning_rate=1e-4",
            f"run.seed={seed}",
            "loss=infonce",
            "loss.temperature=0.05",
        ]
    )
    if composed.problems:
        raise SystemExit(f"{name}: {composed.problems}")
    return composed.config


def cell(name: str, strategy: str, seed: int, work: Path) -> dict[str, Any]:
    """One training, and each test query's nDCG@10 x 100. `strategy` before: the student untrained."""
    before = strategy == "before"
    rows, counts = rows_of(name, PLAIN if before else strategy, seed, work)
    write(work / "rows.jsonl", rows)
    config = config_of(name, work / "rows.jsonl", NEGATIVES if "negatives" in rows[0] else 0, seed, work)
    torch.manual_seed(seed)
    encoder = build_encoder(config)
    started = time.process_time()
    if not before:
        make_steps(config, encoder, STEPS)
    trained = time.process_time() - started
    test = task_of(name).test
    values = test.ndcgs(encoder.encode(test.queries), encoder.encode(test.documents, role="document"))
    return {"counts": counts, "cpu_seconds_of_training": round(trained, 1), "ndcg@10": [round(v, 2) for v in values]}


def results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CELLS.read_text(encoding="utf-8").splitlines()] if CELLS.exists() else []


def run(work: Path, shard: str, only: list[str]) -> None:
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(task, "before", 0) for task in TRAINED if TRAINED[task]]
    jobs += [("limit", strategy, 0) for strategy in COUNTED["limit"]]
    jobs += [(task, strategy, seed) for task in TRAINED for seed in SEEDS for strategy in TRAINED[task]]
    number, of = map(int, shard.split("/"))
    for task, strategy, seed in jobs[number::of]:
        if only and f"{task}/{strategy}" not in only:
            continue
        if any((r["task"], r["strategy"], r["seed"]) == (task, strategy, seed) for r in results()):
            continue
        found = (
            cell(task, strategy, seed, work) if TRAINED[task] else {"counts": rows_of(task, strategy, seed, work)[1]}
        )
        about = {"task": task, "strategy": strategy, "seed": seed, "steps": STEPS}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        with CELLS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(about | found | versions) + "\n")
        ndcg = found.get("ndcg@10", [0.0])
        print(task, strategy, seed, found["counts"], f"{sum(ndcg) / len(ndcg):.2f}", flush=True)


# ----------------------------------------------------------------------------------------------------------- table


def table(task: str) -> Iterable[str]:
    cells = [r for r in results() if r["task"] == task and "ndcg@10" in r]
    strategies = [name for name in ["before", *STRATEGIES] if any(r["strategy"] == name for r in cells)]
    of = {name: {r["seed"]: r for r in cells if r["strategy"] == name} for name in strategies}
    yield (
        "| negatives | rows | unmarked answers, % of negatives | copies of the answer, % | nDCG@10 | to in-batch only: seeds "
        "| queries | to top_k: seeds | queries |"
    )
    yield "|---" * 9 + "|"
    for name in strategies:
        counts = [r["counts"] for r in of[name].values()]
        has = bool(counts[0]["negatives"])
        shares = [f"{mean(c[key] for c in counts):.1f}" if has else "" for key in ("unmarked", "copies")]
        ndcg = mean(mean(r["ndcg@10"]) for r in of[name].values())
        rows = f"{counts[0]['rows']:,}" if name != "before" else ""
        against = [*difference(of, name, PLAIN), *difference(of, name, "top_k")]
        yield "| " + " | ".join([name, rows, *shares, f"{ndcg:.2f}", *against]) + " |"


def difference(of: dict[str, dict[int, dict]], name: str, other: str) -> tuple[str, str]:
    """The difference with its interval over seeds, and that over queries; a star where both leave out zero."""
    seeds = sorted(set(of[name]) & set(of.get(other, {})))
    if name in ("before", other) or len(seeds) < 2:
        return "", ""
    first, second = ([of[which][seed]["ndcg@10"] for seed in seeds] for which in (name, other))
    gaps = [mean(a) - mean(b) for a, b in zip(first, second, strict=True)]
    half = float(stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps))
    own, base = ({str(q): mean(each) for q, each in enumerate(zip(*side, strict=True))} for side in (first, second))
    drawn = paired_bootstrap("ndcg@10", base, own)
    star = " \\*" if abs(mean(gaps)) > half and drawn.is_clear else ""
    return (
        f"{mean(gaps):+.2f} [{mean(gaps) - half:+.2f}, {mean(gaps) + half:+.2f}]{star}",
        f"[{drawn.low:+.2f}, {drawn.high:+.2f}]",
    )


def counted(task: str) -> Iterable[str]:
    yield "| negatives | rows | negatives found | unmarked answers, % of them |"
    yield "|---|---|---|---|"
    for r in results():
        if r["task"] == task:
            counts = r["counts"]
            yield f"| {r['strategy']} | {counts['rows']:,} | {counts['negatives']:,} | {counts['unmarked']:.1f} |"


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def is_measured(task: str) -> bool:
    return any(r["task"] == task and "ndcg@10" in r for r in results())


def page() -> str:
    return "\n".join(
        [
            "#### Questions and answers with unmarked answers (StackFAQ)\n",
            *table("stackfaq"),
            *(["\n#### Claims and abstracts (SciFact)\n", *table("scifact")] if is_measured("scifact") else []),
            "\n#### Who likes what (LIMIT, small): counted alone\n",
            *counted("limit"),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "embedtrain-mining-quality")
    parser.add_argument("--shard", default="0/1", help="which part of the work, each with a --work of its own")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    if given.what == "run":
        run(given.work, given.shard, [name for name in given.only.split(",") if name])
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
