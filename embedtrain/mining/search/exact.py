"""Every document against every query."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from embedtrain.data.draws import Ints
from embedtrain.mining.records import Found, SearchRequest
from embedtrain.mining.search.nearest import nearest
from embedtrain.mining.search.pairs import pair_scores


class Exact:
    """Every document against every query, within the memory cap: where to start, and what other searches are measured by.

    The answer is that of a loop over all pairs: the k largest inner products, equal ones by document index, whatever the
    cap, the number of ranks or the device (`nearest.py` says how, and on what assumption).
    Documents are divided among ranks, each of which compares its own with all queries.

    Cost: 2 x queries x documents x dimensions operations over all ranks, a document of the store read once for each group of
    queries that fits into the cap (100,000 and more in 2 GiB). Memory: `miner.max_memory_gb`, answers included.
    """

    reads_vectors = True

    def top(self, request: SearchRequest, k: int) -> Found:
        """The `k` best of the searched documents of each of this rank's queries.

        Raises ConfigError where `request.max_memory` cannot hold one query and one document, with the least that it takes.
        """
        self._request = request
        found, self._searched_twice = nearest(request, np.arange(len(request.data.queries)), k)
        return found

    def score_pairs(self, queries: Ints, documents: Ints) -> Tensor:
        """[n] fp32: inner products of n pairs, after `top`."""
        return pair_scores(self._request, queries, documents)

    def facts(self) -> dict[str, object]:
        return {
            "kind": "exact",
            "documents": self._request.data.num_searched,
            "searched_twice": self._searched_twice,  # queries with many documents within rounding of the last place
        }
