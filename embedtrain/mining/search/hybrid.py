"""Several searches, fused by rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from embedtrain.data.draws import Ints
from embedtrain.errors import ConfigError
from embedtrain.evaluation.search import rank
from embedtrain.mining.ranks import own_queries
from embedtrain.mining.records import NO_DOCUMENT, Found, Search, SearchRequest
from embedtrain.mining.search.pairs import pair_scores

QUERIES_AT_ONCE = 1024


class Hybrid:
    """Reciprocal rank fusion of several searches (Cormack, Clarke and Buettcher 2009, doi:10.1145/1571941.1572114).

        fused(q, d) = sum over searches that find d of  1 / (constant + rank of d)

    Each search brings as many documents as are asked for; the best by `fused` are the answer, in that order, equal ones by
    document index. So `Found` is best first by the fusion and its scores need not fall. The scores are inner
    products of all documents, whichever search found them, since a filter compares them with that of the positive. Only where
    all searches are lexical, and there are no vectors, are they the fused scores.

    searches   by name; null drops one
    constant   the larger, the less a first place counts
    """

    def __init__(self, *, searches: Mapping[str, Search | None], constant: float = 60.0) -> None:
        self.searches = {name: search for name, search in searches.items() if search is not None}
        if len(self.searches) < 2:
            raise ConfigError(
                f"miner.search.searches: expected two or more to fuse, got {', '.join(self.searches) or 'none'}."
            )
        if constant < 0:
            raise ConfigError(f"miner.search.constant={constant}: expected 0 or more.")
        self.constant = constant

    @property
    def reads_vectors(self) -> bool:
        return any(search.reads_vectors for search in self.searches.values())

    def top(self, request: SearchRequest, k: int) -> Found:
        """The `k` best by rank of what the searches find for each of this rank's queries."""
        self._request = request
        self._own = own_queries(len(request.data.queries))
        self._lists: dict[str, Found] = {}
        room = request.max_memory
        for name, search in self.searches.items():
            folder = request.folder / name
            folder.mkdir(exist_ok=True)
            found = search.top(replace(request, folder=folder, max_memory=room), k)
            room -= found.documents.nbytes + found.scores.nbytes
            self._lists[name] = found
        fused = [self._fused(slice(i, i + QUERIES_AT_ONCE), k) for i in range(0, len(self._own), QUERIES_AT_ONCE)]
        empty = torch.empty(0, k, dtype=torch.float64)
        documents = torch.cat([empty.long(), *(documents for documents, _ in fused)])
        if not self.reads_vectors:
            return Found(documents, torch.cat([empty, *(scores for _, scores in fused)]).float())
        self._lists.clear()
        scores = pair_scores(request, np.repeat(np.array(self._own), k), documents.numpy().reshape(-1))
        return Found(documents, scores.view(documents.shape))

    def score_pairs(self, queries: Ints, documents: Ints) -> Tensor:
        """[n] fp32: of n pairs of this rank's queries, after `top`.

        Inner products where there are vectors. Where not: the fused score, by the place that the document has in each
        list, or would have by its score there; 0 from a list that ends before.
        """
        if self.reads_vectors:
            return pair_scores(self._request, queries, documents)
        rows = torch.from_numpy(queries) - self._own.start
        total = torch.zeros(len(queries), dtype=torch.float64)
        for name, search in self.searches.items():
            scores = search.score_pairs(queries, documents)
            listed = self._lists[name]
            above = (listed.scores[rows] > scores[:, None]).sum(dim=1)
            equal = (listed.scores[rows] == scores[:, None]) & (
                listed.documents[rows] < torch.from_numpy(documents)[:, None]
            )
            places = 1 + above + equal.sum(dim=1)
            total += torch.where(
                (scores > 0) & (places <= listed.scores.shape[1]), 1 / (self.constant + places.double()), 0.0
            )
        return total.float().masked_fill_(torch.from_numpy(documents == NO_DOCUMENT), torch.nan)

    def facts(self) -> dict[str, object]:
        return {
            "kind": "hybrid",
            "constant": self.constant,
            "searches": {name: search.facts() for name, search in self.searches.items()},
        }

    def _fused(self, rows: slice, k: int) -> tuple[Tensor, Tensor]:
        """The k best of some queries by their fused scores: numbers, and the scores in fp64, NaN where there is none."""
        documents = torch.cat([found.documents[rows] for found in self._lists.values()], dim=1)
        places = torch.arange(1, k + 1, dtype=torch.float64).repeat(len(self._lists))
        parts = (1 / (self.constant + places)).masked_fill(documents == NO_DOCUMENT, 0.0)
        # Equal documents side by side, the sum of each run at the run's first place.
        documents, order = documents.sort(dim=1, stable=True)
        first = torch.ones_like(documents, dtype=torch.bool)
        first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        run = first.cumsum(dim=1) - 1
        sums = torch.zeros_like(parts).scatter_add_(1, run, parts.gather(1, order))
        # Rounded, so that three equal parts in another order give the same sum.
        scores = torch.where(first, sums.gather(1, run), 0.0).round(decimals=12)
        scores = scores.masked_fill_(~first | (documents == NO_DOCUMENT), -torch.inf)
        scores, documents = rank(scores, documents, k)
        nothing = scores == -torch.inf
        return documents.masked_fill_(nothing, NO_DOCUMENT), scores.masked_fill_(nothing, torch.nan)
