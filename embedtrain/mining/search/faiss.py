"""Indexes of faiss (arXiv:2401.08281): approximate search for corpora that the exact one takes too long for.

1. Rank 0 trains the index on a sample of the documents, adds all of them in chunks, and writes it whole into the folder of the
   call. Every rank maps that file into memory, one copy for all ranks of a machine, and searches for its own queries.
2. What the index found is scored again by the vectors themselves (`pairs.py`), since codes give approximations, and ranked by
   that; equal scores by document index.
3. A sample of the queries is searched exactly as well. The share of their true k best that the index found is the recall.

All run on the CPU, whichever package of faiss is installed. With a GPU try the exact search first, which runs there.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.errors import ConfigError
from embedtrain.evaluation.search import rank
from embedtrain.mining.ranks import own_queries
from embedtrain.mining.records import NO_DOCUMENT, Found, SearchRequest
from embedtrain.mining.search.files import whole
from embedtrain.mining.search.nearest import SPARE, nearest
from embedtrain.mining.search.pairs import pair_scores
from embedtrain.store.ranks import on_main

log = logging.getLogger("embedtrain")

# faiss calls fewer points per centroid too few, and takes no more than 256.
LEAST_POINTS, USUAL_POINTS = 39, 64


class FaissIndex:
    """What all kinds share. A kind says what its index is made of.

    recall_sample   queries that are searched exactly as well, to measure the recall; 0: not measured
    seed            of that sample, and of the training of the index
    """

    reads_vectors = True
    kind = ""

    def __init__(self, *, recall_sample: int, seed: int) -> None:
        if recall_sample < 0:
            raise ConfigError(f"miner.search.recall_sample={recall_sample}: expected a number of queries, or 0.")
        self.recall_sample = recall_sample
        self.seed = seed

    def empty(self, dim: int, num_documents: int) -> Any:
        """The index before it is trained. Raises ConfigError where settings do not fit the vectors."""
        raise NotImplementedError

    def points(self, num_documents: int) -> tuple[int, int]:
        """Documents to train on: the least, and the usual number."""
        return 0, 0

    def wanted(self, k: int) -> int:
        """How many documents to ask the index for, to return `k`."""
        return k + SPARE

    def tune(self, index: Any, wanted: int, num_documents: int) -> None:
        """Sets how far the search goes."""

    def settings(self, num_documents: int) -> dict[str, object]:
        """For the report."""
        return {}

    def top(self, request: SearchRequest, k: int) -> Found:
        """The best documents that the index finds for each of this rank's queries, by their exact scores.

        Raises ConfigError where there are too few documents to train the index on.
        """
        import faiss

        self._request, searched = request, request.data.num_searched
        path = request.folder / f"{self.kind}.faiss"
        on_main(lambda: self._write(request, path))
        # Older releases map fewer kinds, and read the others.
        index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP))
        found = self._find(index, request, k)
        short = (found.documents == NO_DOCUMENT).sum(dim=1) > max(0, k - searched)
        self._facts = {
            "kind": f"faiss {self.kind}",
            "documents": searched,
            **self.settings(searched),
            "index_bytes": path.stat().st_size,
            "short_queries": int(distributed.sum_over_ranks(short.sum())),  # found fewer than k
            **self._recall(request, found, k),
        }
        return found

    def score_pairs(self, queries: Ints, documents: Ints) -> Tensor:
        """[n] fp32: inner products of n pairs, after `top`."""
        return pair_scores(self._request, queries, documents)

    def facts(self) -> dict[str, object]:
        return self._facts

    def _write(self, request: SearchRequest, path: Path) -> None:
        import faiss

        assert request.documents is not None
        documents, searched = request.documents, request.data.num_searched
        index = self.empty(documents.dim, searched)
        if not index.is_trained:
            index.train(documents.rows(self._sample(request)))
        size = max(1, min(65536, request.max_memory // (12 * documents.dim)))
        with tqdm(total=searched, desc="index", unit="document", disable=None) as bar:
            for start in range(0, searched, size):
                stop = min(start + size, searched)
                index.add(documents.rows(slice(start, stop)))
                bar.update(stop - start)
        with whole(path) as unfinished:
            faiss.write_index(index, str(unfinished))

    def _sample(self, request: SearchRequest) -> Ints:
        """The documents to train on."""
        assert request.documents is not None
        searched = request.data.num_searched
        least, usual = self.points(searched)
        if searched < least:
            raise ConfigError(
                f"miner.search: a faiss {self.kind} index of {searched:,} documents is trained on at least {least:,} "
                f"({LEAST_POINTS} for each centroid). Use the exact search (search@miner.search=exact), which is fast at "
                "this size, or fewer centroids (nlist, bits)."
            )
        room = request.max_memory // (12 * request.documents.dim)
        if room < least:
            raise ConfigError(
                f"miner.max_memory_gb: a faiss {self.kind} index of {searched:,} documents is trained on at least {least:,}, of "
                f"which {room:,} fit into the cap. Raise it, or use fewer centroids (nlist, bits)."
            )
        generator = np.random.default_rng([self.seed, 0])
        return np.sort(generator.choice(searched, size=min(searched, room, max(least, usual)), replace=False))

    def _find(self, index: Any, request: SearchRequest, k: int) -> Found:
        assert request.queries is not None
        searched, own = request.data.num_searched, own_queries(len(request.queries))
        wanted = min(self.wanted(k), searched)
        self.tune(index, wanted, searched)
        found = Found(torch.full((len(own), k), NO_DOCUMENT, dtype=torch.int64), torch.full((len(own), k), torch.nan))
        size = max(1, min(4096, request.max_memory // 4 // (8 * request.queries.dim + 100 * wanted)))
        bar = tqdm(total=len(own), desc="search", unit="query", disable=None if distributed.is_main() else True)
        with bar:
            for start in range(0, len(own), size):
                block = np.array(own[start : start + size])
                _, numbers = index.search(request.queries.rows(block), wanted)
                scores, documents = _rescored(request, block, torch.from_numpy(numbers))
                some = slice(start, start + len(block))
                found.documents[some, :wanted], found.scores[some, :wanted] = documents[:, :k], scores[:, :k]
                bar.update(len(block))
        return found

    def _recall(self, request: SearchRequest, found: Found, k: int) -> dict[str, object]:
        assert request.queries is not None
        total, own = len(request.queries), own_queries(len(request.queries))
        generator = np.random.default_rng([self.seed, 1])
        sample = np.sort(generator.choice(total, size=min(total, self.recall_sample), replace=False))
        if not sample.size:
            return {"recall": None}
        held = found.documents.nbytes + found.scores.nbytes
        exact, _ = nearest(replace(request, max_memory=request.max_memory - held), sample, k)
        rows = torch.from_numpy(sample[(sample >= own.start) & (sample < own.stop)] - own.start)
        there = exact.documents != NO_DOCUMENT
        pairs = zip(exact.documents, found.documents[rows], there, strict=True)
        hits = sum(int(torch.isin(true[known], finds).sum()) for true, finds, known in pairs)
        all_hits, all_true = distributed.sum_over_ranks(torch.tensor([hits, int(there.sum())])).tolist()
        recall = all_hits / max(1, all_true)
        log.info("search: faiss %s found %.4f of the true %d best of %d queries", self.kind, recall, k, sample.size)
        return {"recall": recall, "recall_at": k, "recall_queries": sample.size}


def _rescored(request: SearchRequest, queries: Ints, documents: Tensor) -> tuple[Tensor, Tensor]:
    """The documents [m, n] of each query by their exact scores, best first; NO_DOCUMENT and NaN at the end."""
    scores = pair_scores(request, np.repeat(queries, documents.shape[1]), documents.numpy().reshape(-1))
    scores = scores.view(documents.shape).masked_fill_(documents == NO_DOCUMENT, -torch.inf)
    scores, documents = rank(scores, documents, documents.shape[1])
    return scores.masked_fill_(documents == NO_DOCUMENT, torch.nan), documents


class FaissFlat(FaissIndex):
    """All vectors in one index, every one compared. For comparison: it finds what `exact` finds, unless more than 16 documents
    are within rounding of the last place, at about half its speed, and its index holds all vectors once more.
    """

    kind = "flat"

    def __init__(self, *, recall_sample: int = 200, seed: int = 0) -> None:
        super().__init__(recall_sample=recall_sample, seed=seed)

    def empty(self, dim: int, num_documents: int) -> Any:
        import faiss

        return faiss.IndexFlatIP(dim)


class FaissIVF(FaissIndex):
    """Documents in lists by their nearest centroid; a query looks through the lists of its `nprobe` nearest centroids.

    The usual choice between 1 and 100 million documents: a query is compared with nprobe / nlist of them. Documents in other
    lists are never found, so look at the recall. The index holds all vectors.

    nlist    centroids; null: 4 sqrt(documents)
    nprobe   lists that a query looks through
    """

    kind = "ivf"

    def __init__(self, *, nlist: int | None = None, nprobe: int = 32, recall_sample: int = 200, seed: int = 0) -> None:
        super().__init__(recall_sample=recall_sample, seed=seed)
        _at_least_one(nlist=nlist, nprobe=nprobe)
        self.nlist = nlist
        self.nprobe = nprobe

    def lists(self, num_documents: int) -> int:
        return self.nlist or max(1, round(4 * math.sqrt(num_documents)))

    def empty(self, dim: int, num_documents: int) -> Any:
        import faiss

        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, self.lists(num_documents), faiss.METRIC_INNER_PRODUCT)
        return _seeded(index, self.seed)

    def points(self, num_documents: int) -> tuple[int, int]:
        lists = self.lists(num_documents)
        return LEAST_POINTS * lists, USUAL_POINTS * lists

    def tune(self, index: Any, wanted: int, num_documents: int) -> None:
        index.nprobe = min(self.nprobe, self.lists(num_documents))

    def settings(self, num_documents: int) -> dict[str, object]:
        lists = self.lists(num_documents)
        return {"nlist": lists, "nlist_derived": self.nlist is None, "nprobe": min(self.nprobe, lists)}


class FaissHNSW(FaissIndex):
    """A graph of near neighbours that a query walks through (Malkov and Yashunin 2018, arXiv:1603.09320).

    The fastest to search at high recall, and the slowest to build; nothing to train, so any size will do. Built by several
    threads, two builds of the same documents may differ in a few finds. The index holds all vectors and 8 x m bytes each.

    m                 links of a document
    ef_construction   candidates while building: more is better and slower
    ef_search         candidates while searching, at least as many as are asked for
    """

    kind = "hnsw"

    def __init__(
        self,
        *,
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 256,
        recall_sample: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(recall_sample=recall_sample, seed=seed)
        _at_least_one(m=m, ef_construction=ef_construction, ef_search=ef_search)
        self.m = m
        self.ef_construction = ef_construction
        self.ef_search = ef_search

    def empty(self, dim: int, num_documents: int) -> Any:
        import faiss

        index = faiss.IndexHNSWFlat(dim, self.m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.ef_construction
        return index

    def tune(self, index: Any, wanted: int, num_documents: int) -> None:
        self._ef_used = max(self.ef_search, wanted)
        index.hnsw.efSearch = self._ef_used

    def settings(self, num_documents: int) -> dict[str, object]:
        return {"m": self.m, "ef_construction": self.ef_construction, "ef_search": self._ef_used}


class FaissPQ(FaissIVF):
    """Inverted lists of codes: a vector is `m` numbers of `bits` bits (Jegou et al. 2011, doi:10.1109/TPAMI.2010.57).

    For what does not fit into memory: 384 dimensions become 48 bytes in place of 1536. Codes are coarse, so `oversample` times
    as many documents are asked for as are wanted, and the best by their exact scores are returned.

    nlist, nprobe   as for inverted lists
    m               parts of a vector, each a code; must divide the dimensions; null: a part has 8 dimensions
    bits            of a code
    oversample      documents asked for, for each that is wanted
    """

    kind = "pq"

    def __init__(
        self,
        *,
        nlist: int | None = None,
        nprobe: int = 32,
        m: int | None = None,
        bits: int = 8,
        oversample: float = 4.0,
        recall_sample: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(nlist=nlist, nprobe=nprobe, recall_sample=recall_sample, seed=seed)
        _at_least_one(m=m, bits=bits, oversample=oversample)
        self.m = m
        self.bits = bits
        self.oversample = oversample

    def parts(self, dim: int) -> int:
        parts = self.m or max(1, dim // 8)
        if dim % parts:
            raise ConfigError(
                f"miner.search.m: {parts} parts do not divide vectors of {dim} dimensions. Set m to a divisor of {dim}."
            )
        return parts

    def empty(self, dim: int, num_documents: int) -> Any:
        import faiss

        index = faiss.IndexIVFPQ(
            faiss.IndexFlatIP(dim),
            dim,
            self.lists(num_documents),
            self.parts(dim),
            self.bits,
            faiss.METRIC_INNER_PRODUCT,
        )
        index.pq.cp.seed = self.seed
        return _seeded(index, self.seed)

    def points(self, num_documents: int) -> tuple[int, int]:
        centroids = max(self.lists(num_documents), 2**self.bits)
        return LEAST_POINTS * centroids, USUAL_POINTS * centroids

    def wanted(self, k: int) -> int:
        return math.ceil(self.oversample * k) + SPARE

    def settings(self, num_documents: int) -> dict[str, object]:
        assert self._request.documents is not None
        parts = self.parts(self._request.documents.dim)
        return {**super().settings(num_documents), "m": parts, "bits": self.bits, "oversample": self.oversample}


def _seeded(index: Any, seed: int) -> Any:
    """Centroids on the unit sphere, as inner products want them."""
    index.cp.seed, index.cp.spherical = seed, True
    return index


def _at_least_one(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"miner.search.{name}={value}: expected at least 1.")
