"""The searches of the miner: time against the bare matrix product, memory against the cap, recall of the approximate ones.

    python benchmarks/search.py                  # what is not measured yet -> benchmarks/results/search.{json,md}
    python benchmarks/search.py --only exact     # part of it: exact, large, caps, ranks, faiss

Synthetic vectors of 384 dimensions on the unit sphere, 1,000 clusters, in a memory-mapped file. Each row runs in fresh processes
of one thread each. Time is CPU time of the search, all ranks together; `bare` is that of the products alone, tile by tile as the
search takes them, measured in the same process on a part and scaled. Memory is the largest anonymous resident set that was seen
(every 20 ms) above that before the search: the file's pages belong to the page cache. Exact searches run under a hard limit of
the kernel, cap + 32 MiB of data segment, with which an allocation beyond it fails. `as brute force` compares what was found
for 20 queries with a loop over all documents in double precision: ids at the same place. An index of faiss takes long to build,
so these get fewer queries and documents; their CPU seconds have the build and the search of 200 queries for the recall in them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedtrain.mining.records import Found

RESULTS = Path(__file__).parent / "results"
DIM, K = 384, 100
GIB = 2**30

EXACT = [{"search": "exact", "queries": 2_000, "documents": n, "cap": 2 * GIB} for n in (100, 300, 1000)]
LARGE = [{"search": "exact", "queries": 10_000, "documents": 1000, "cap": 2 * GIB}]
CAPS = [{"search": "exact", "queries": 2_000, "documents": 100, "cap": cap} for cap in (GIB // 4, GIB // 32)]
RANKS = [{"search": "exact", "queries": 2_000, "documents": 100, "cap": 2 * GIB, "ranks": n} for n in (1, 2)]
FAISS = [
    {"search": name, "queries": 2_000, "documents": 50, "cap": 2 * GIB}
    for name in ("exact", "faiss_flat", "faiss_ivf", "faiss_pq", "faiss_hnsw")
]
PARTS = {"exact": EXACT, "large": LARGE, "caps": CAPS, "ranks": RANKS, "faiss": FAISS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--folder", help="for the vectors, 1.5 GB; default: a temporary one")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a row as JSON: this process runs it
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(json.loads(args.one))))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        chosen = [{"part": part, **row} for part in ([args.only] if args.only else PARTS) for row in PARTS[part]]
        chosen = [row for row in chosen if not any(row.items() <= done.items() for done in measured())]
        make_vectors(Path(folder), max((row["documents"] for row in chosen), default=0) * 1000)
        for row in chosen:
            done = row | launch(row, folder)
            print(json.dumps(done), flush=True)
            write(sorted([*measured(), done], key=lambda row: list(PARTS).index(row["part"])))


def measured() -> list[dict]:
    path = RESULTS / "search.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def make_vectors(folder: Path, num_documents: int) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    centers = generator.standard_normal((1000, DIM), dtype=np.float32)
    for name, count in (("queries", 10_000), ("documents", num_documents)):
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, DIM))
        for start in range(0, count, 50_000):
            size = min(50_000, count - start)
            values = centers[generator.integers(0, 1000, size)] + generator.standard_normal((size, DIM), np.float32)
            file[start : start + size] = values / np.linalg.norm(values, axis=1, keepdims=True)
        file.flush()


def launch(row: dict, folder: str) -> dict:
    ranks = row.get("ranks", 1)
    with tempfile.TemporaryDirectory(dir=folder) as shared:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
        job = json.dumps(row | {"folder": folder, "shared": shared})
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--one", job],
                env=environment | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    together = answers[0]
    for name, combine in (("cpu_seconds", sum), ("seconds", max), ("extra_mib", max), ("as_brute_force", min)):
        together[name] = round(combine(answer[name] for answer in answers), 2)
    return together


def measure(row: dict) -> dict:
    import numpy as np
    import torch
    import torch.distributed as dist

    from embedtrain.config.build import build
    from embedtrain.config.compose import compose_config
    from embedtrain.mining.records import MiningData, SearchRequest

    torch.set_num_threads(1)
    if row.get("ranks", 1) > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{row['shared']}/ranks",
            rank=int(os.environ["RANK"]),
            world_size=row["ranks"],
        )
    folder, num_queries, num_documents = Path(row["folder"]), row["queries"], row["documents"] * 1000
    queries, documents = (
        Mapped(folder / f"{name}.npy", count)
        for name, count in (("queries", num_queries), ("documents", num_documents))
    )
    search = build(compose_config(["miner=top_k", f"search@miner.search={row['search']}"]).config["miner"]["search"])
    none = np.zeros(0, dtype=np.int64)
    data = MiningData(
        "synthetic", range(num_queries), [None] * num_queries, range(num_documents), num_documents,
        none, none, none, none, none, num_documents,
    )  # fmt: skip
    index = Path(row["shared"]) / "index"
    index.mkdir(exist_ok=True)
    request = SearchRequest(data, queries, documents, torch.device("cpu"), row["cap"], index)
    bare = bare_seconds(queries, documents)
    if row["search"] == "exact":
        limit = memory("VmData") + row["cap"] + 32 * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    build = built(search)
    with Peak() as peak:
        started, cpu = time.perf_counter(), time.process_time()
        found = search.top(request, K)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    products = 2 * num_queries * num_documents * DIM
    return {
        "cpu_seconds": cpu,
        "seconds": seconds,
        "extra_mib": peak.extra / 2**20,
        "bare_seconds": round(bare * products, 2),
        "build_seconds": sum(build),
        "as_brute_force": as_brute_force(found, queries, documents),
        "facts": search.facts(),
    }


def built(search: Any) -> list[float]:
    """CPU seconds that a search spends on its index, once it has."""
    seconds: list[float] = []
    write = getattr(search, "_write", None)

    def timed(*given: Any) -> None:
        started = time.process_time()
        write(*given)
        seconds.append(time.process_time() - started)

    if write is not None:
        search._write = timed
    return seconds


def as_brute_force(found: Found, queries: Mapped, documents: Mapped) -> float:
    """Share of the ids of 20 of this rank's queries that are those of a loop in double precision, place by place."""
    import numpy as np

    from embedtrain.mining.ranks import own_queries

    own = own_queries(len(queries))
    some = np.linspace(0, len(own) - 1, 20).astype(np.int64)
    asked = queries.rows(own.start + some).astype(np.float64)
    scores = np.concatenate(
        [asked @ documents.rows(slice(i, i + 20_000)).T.astype(np.float64) for i in range(0, len(documents), 20_000)],
        axis=1,
    )
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return float((found.documents[some].numpy() == best).mean())


def bare_seconds(queries: Mapped, documents: Mapped) -> float:
    """CPU seconds of one floating-point operation in products of the search's tiles. The better of three."""
    import numpy as np
    import torch

    from embedtrain.evaluation.search import inner_products

    some = torch.from_numpy(queries.rows(np.arange(1024)))
    all_seconds = []
    for start in range(3):
        chunk = torch.from_numpy(documents.rows(slice(start * 16384, (start + 1) * 16384)))
        cpu = time.process_time()
        for _ in inner_products(some, chunk):
            pass
        all_seconds.append((time.process_time() - cpu) / (2 * len(some) * len(chunk) * DIM))
    return min(all_seconds)


class Mapped:
    """The first vectors of a file."""

    dim = DIM

    def __init__(self, path: Path, count: int) -> None:
        import numpy as np

        self.values = np.load(path, mmap_mode="r")[:count]

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index):
        import numpy as np

        return np.array(self.values[index])


class Peak:
    """The largest anonymous resident set while it is open, above that before."""

    def __enter__(self) -> Peak:
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be taken again unseen
        self.before = self.most = memory("RssAnon")
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, memory("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.extra = self.most - self.before


def memory(name: str) -> int:
    """Bytes, from /proc: Linux only."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def write(rows: list[dict]) -> None:
    import torch

    lines = [
        "| part | search | queries x documents | cap MiB | ranks | CPU seconds | x bare | of these to build | extra memory MiB "
        "| as brute force | recall |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        recall = row["facts"].get("recall")
        same = f"{row['as_brute_force']:.4f}" if recall is None else ""
        lines.append(
            f"| {row['part']} | {row['search']} | {row['queries']:,} x {row['documents'] * 1000:,} | {row['cap'] // 2**20} "
            f"| {row.get('ranks', 1)} | {row['cpu_seconds']:.1f} | {row['cpu_seconds'] / row['bare_seconds']:.2f} "
            f"| {row['build_seconds']:.1f} | {row['extra_mib']:.0f} | {same} "
            f"| {'' if recall is None else f'{recall:.4f}'} |"
        )
    about = {"dim": DIM, "k": K, "torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    (RESULTS / "search.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "search.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
