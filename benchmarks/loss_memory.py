"""Memory and CPU time of the contrastive loss, forward and backward, against peers and against its bare matrix products.

    python benchmarks/loss_memory.py                     # writes benchmarks/results/loss_memory.{json,md}; about 5 minutes
    python benchmarks/loss_memory.py --sizes 8192:8192   # queries:documents

Each arm runs in a fresh process with one thread. Time is CPU time of that process (median of 3 after one small warm-up), so
neighbours on the machine do not count. Memory is the peak resident set above that of the process with the embeddings loaded.
Arms of one size get the same embeddings and must agree on the loss to 1e-4; the table says so if they do not.

    embedtrain       loss=infonce
    naive            cross_entropy(queries @ documents.T / temperature)
    st, st_cached    sentence-transformers' (Cached)MultipleNegativesRankingLoss on given embeddings: its loss arithmetic alone.
                     The cached one at its default mini-batch (32) and at 256
    products         the three matrix products that forward and backward cannot do without, block by block
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SIZES = ["8192:8192", "8192:32768", "2048:131072"]
ARMS = ["products", "embedtrain", "naive", "st", "st_cached_32", "st_cached_256"]
TEMPERATURE = 0.05
NAIVE_LIMIT = 6 << 30  # bytes of logits, their softmax and their gradient; beyond, the arms that hold them are not run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="QUERIES:DOCUMENTS")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # arm queries documents: this process runs it
    args = parser.parse_args()
    if args.one:
        arm, queries, documents = args.one[0], int(args.one[1]), int(args.one[2])
        print(json.dumps(measure(arm, queries, documents, args.dim, args.repeats)))
        return
    rows = []
    for size in args.sizes:
        queries, documents = map(int, size.split(":"))
        for arm in args.arms:
            rows.append(
                {"queries": queries, "documents": documents, "arm": arm} | launch(arm, queries, documents, args)
            )
            print(json.dumps(rows[-1]), flush=True)
    write(rows, args.dim)


def launch(arm: str, queries: int, documents: int, args: argparse.Namespace) -> dict:
    if arm in ("naive", "st") and 3 * 4 * queries * documents > NAIVE_LIMIT:
        return {"refused": f"needs about {3 * 4 * queries * documents / 2**30:.0f} GiB"}
    command = [sys.executable, __file__, "--one", arm, str(queries), str(documents)]
    command += ["--dim", str(args.dim), "--repeats", str(args.repeats)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(arm: str, num_queries: int, num_documents: int, dim: int, repeats: int) -> dict:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    queries, documents = (torch.randn(n, dim) for n in (num_queries, num_documents))
    # Query-major: the positive of a query, then its hard negatives. Positives lean towards their queries.
    documents[:: num_documents // num_queries].add_(queries, alpha=0.2)
    for x in (queries, documents):
        x /= x.norm(dim=1, keepdim=True)
    step = arm_step(arm)
    step(queries[:64].clone().requires_grad_(), documents[:64].clone().requires_grad_())
    queries.requires_grad_(), documents.requires_grad_()

    before = peak_mib()
    seconds, loss = [], None
    for _ in range(repeats):
        queries.grad = documents.grad = None
        start = time.process_time()
        loss = step(queries, documents)
        seconds.append(time.process_time() - start)
    return {"cpu_seconds": statistics.median(seconds), "extra_mib": peak_mib() - before, "loss": loss}


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def arm_step(arm: str) -> Callable:
    """(queries [Q, E], documents [D, E]) -> loss; runs forward and backward."""
    import torch

    if arm == "products":

        def products(queries, documents):
            with torch.no_grad():
                block = max(1, (64 << 20) // (4 * len(documents)))
                d_queries, d_documents = torch.zeros_like(queries), torch.zeros_like(documents)
                tile = torch.empty(block, len(documents))
                for start in range(0, len(queries), block):
                    rows = queries[start : start + block]
                    logits = torch.mm(rows, documents.T, out=tile[: len(rows)])
                    torch.mm(logits, documents, out=d_queries[start : start + block])
                    d_documents.addmm_(logits.T, rows)

        return products

    if arm == "embedtrain":
        from embedtrain.losses.infonce import InfoNCE
        from embedtrain.types import EmbeddingBatch, Embeddings, Relation

        criterion = InfoNCE(temperature=TEMPERATURE)

        def embedtrain(queries, documents):
            each = len(documents) // len(queries)
            positive = torch.arange(len(documents)) % each == 0
            relation = Relation(
                query_ids=torch.arange(len(queries)),
                document_ids=torch.arange(len(documents)),
                owner=torch.arange(len(queries)).repeat_interleave(each),
                is_positive=positive,
                known_ids=torch.arange(0, len(documents), each),
                known_offsets=torch.arange(len(queries) + 1),
            )
            loss = criterion(EmbeddingBatch(Embeddings(queries), Embeddings(documents), relation)).loss
            loss.backward()
            return loss.item()

        return embedtrain

    if arm == "naive":

        def naive(queries, documents):
            labels = torch.arange(0, len(documents), len(documents) // len(queries))
            loss = torch.nn.functional.cross_entropy(queries @ documents.T / TEMPERATURE, labels)
            loss.backward()
            return loss.item()

        return naive

    from sentence_transformers.sentence_transformer import losses

    model = torch.nn.Sequential(torch.nn.Identity())  # the losses want one; the arithmetic under test never calls it

    def columns(queries, documents):
        return [queries, *documents.view(len(queries), -1, documents.shape[1]).unbind(1)]

    if arm == "st":
        plain = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)

        def st(queries, documents):
            loss = plain.compute_loss_from_embeddings(columns(queries, documents), None)
            loss.backward()
            return loss.item()

        return st

    cached = losses.CachedMultipleNegativesRankingLoss(
        model, scale=1 / TEMPERATURE, mini_batch_size=int(arm.rpartition("_")[2])
    )

    def st_cached(queries, documents):
        # As the library does between its two passes: leaves without history, gradients by row chunks.
        leaves = [[x.detach().requires_grad_()] for x in columns(queries, documents)]
        return cached.calculate_loss(leaves, None, with_backward=True).item()

    return st_cached


def write(rows: list[dict], dim: int) -> None:
    import torch

    bare = {(r["queries"], r["documents"]): r["cpu_seconds"] for r in rows if r["arm"] == "products"}
    ours = {(r["queries"], r["documents"]): r["loss"] for r in rows if r["arm"] == "embedtrain"}
    lines = [
        "| queries x documents | arm | CPU seconds | x bare products | extra memory MiB | loss |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = (row["queries"], row["documents"])
        head = f"| {size[0]} x {size[1]} | {row['arm']} |"
        if "refused" in row:
            lines.append(f"{head} not run: {row['refused']} | | | |")
            continue
        ratio = f"{row['cpu_seconds'] / bare[size]:.2f}" if size in bare else ""
        loss = "" if row["loss"] is None else f"{row['loss']:.5f}"
        if loss and size in ours and abs(row["loss"] - ours[size]) > 1e-4:
            loss += " DIFFERS"
        lines.append(f"{head} {row['cpu_seconds']:.2f} | {ratio} | {row['extra_mib']:.0f} | {loss} |")
    RESULTS.mkdir(exist_ok=True)
    about = {"dim": dim, "torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    (RESULTS / "loss_memory.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (RESULTS / "loss_memory.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
