"""The exact search: the k documents of largest inner product with each query, the same for every cap and number of ranks.

1. Queries are taken in groups that fit into memory. Each rank passes over its own part of the documents, chunk by chunk, and
   keeps the k + SPARE best of each query by fp32 products of blocks (`BestSoFar`).
2. The finds of all ranks are merged; each rank keeps those of its own queries.
3. What is left is scored again, pair by pair, by the one number that does not depend on blocks (`pairs.py`), and ranked by it;
   equal scores by document index. The first k are the answer.
4. A document left out had a lower product in fp32 than the last of the k + SPARE. Where the k-th is above that by more than
   fp32 can be wrong, the answer is settled. The queries where it is not (many documents with equal vectors, say) are
   searched once more, with products in fp64.

So the answer is that of a loop over all pairs by the scores of `pairs.py`. One thing is not proven but statistical: how wrong
a sum of E fp32 products can be. It is taken as 4 sqrt(E) 2^-24 |q| |d|, which random rounding errors pass with a probability
below 1e-3 even for a sum in plain order (Higham and Mary 2019, doi:10.1137/18M1226312); sums of blocks are far better.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.data.sampling import part
from embedtrain.errors import DataError
from embedtrain.evaluation.search import BestSoFar, full_precision, inner_products, rank
from embedtrain.mining.ranks import own_queries
from embedtrain.mining.records import NO_DOCUMENT, Found, SearchRequest
from embedtrain.mining.search.pairs import pair_scores
from embedtrain.mining.search.plan import Costs, Plan, plan

SPARE = 16


@torch.no_grad()
def nearest(request: SearchRequest, queries: Ints, k: int) -> tuple[Found, int]:
    """Of `queries` (ascending numbers, the same on all ranks) those that are this rank's, and how many of all had to be
    searched twice. Every rank calls it.

    Raises ConfigError where `request.max_memory` is too small, DataError for vectors that are not finite.
    """
    assert request.queries is not None, "the exact search reads vectors"
    starts = [own_queries(len(request.queries), r).start for r in range(distributed.world_size())]
    mine = queries[slice(*np.searchsorted(queries, [*starts, len(request.queries)])[distributed.rank() :][:2])]
    found = Found(torch.full((len(mine), k), NO_DOCUMENT, dtype=torch.int64), torch.full((len(mine), k), torch.nan))
    unsettled = _search(request, queries, mine, found, k, spare=SPARE)
    again = np.concatenate(distributed.gather_objects(unsettled))
    if again.size:
        _search(request, again, mine, found, k, spare=0)
    return found, again.size


def _search(request: SearchRequest, queries: Ints, mine: Ints, found: Found, k: int, *, spare: int) -> Ints:
    """Fills in the rows of `queries` that are among `mine`, the numbers of the rows of `found`; returns those not settled.

    spare=0: products in fp64, after which nothing is unsettled.
    """
    assert request.queries is not None
    assert request.documents is not None
    world, searched = distributed.world_size(), request.data.num_searched
    owners = [own_queries(len(request.queries), r) for r in range(world)]
    bounds = np.searchsorted(queries, [*(own.start for own in owners), len(request.queries)])
    # The same sizes on all ranks, since they meet in each group: those of the rank that has most.
    documents = part(searched, distributed.rank(), world)
    sizes = plan(
        len(queries),
        -(-searched // world),
        int(np.diff(bounds).max()),
        k,
        Costs(request.documents.dim, k + spare, world),
        request.max_memory,
        request.device,
    )
    unsettled = []
    starts = range(0, len(queries), max(1, sizes.group))
    total = len(starts) * (documents.stop - documents.start)
    with tqdm(total=total, desc="search", unit="document", disable=None if distributed.is_main() else True) as bar:
        for start in starts:
            group = queries[start : start + sizes.group]
            scores, indices, slack = _pass(request, group, documents, k + spare, sizes, bar, exact=not spare)
            for owner in range(world):
                first, last = np.clip(bounds[owner : owner + 2] - start, 0, len(group)).tolist()
                kept = _merged(scores[first:last], indices[first:last], sizes.merged, keep=owner == distributed.rank())
                if owner == distributed.rank():
                    own, (own_scores, own_indices), own_slack = group[first:last], kept, slack[first:last]
            del scores, indices
            settled = torch.ones(len(own), dtype=torch.bool)
            if spare:
                last_score = own_scores[:, -1:]
                own_scores, own_indices = _rescored(request, own, own_indices, sizes)
                if searched > k + spare:
                    settled = own_scores[:, k - 1] > last_score[:, 0] + own_slack
            row = torch.from_numpy(np.searchsorted(mine, own))
            size = min(k, searched)
            found.documents[row, :size], found.scores[row, :size] = own_indices[:, :size], own_scores[:, :size]
            unsettled.append(own[~settled.numpy()])
    return np.concatenate([*unsettled, queries[:0]])


def _pass(
    request: SearchRequest, group: Ints, documents: slice, kept: int, sizes: Plan, bar: tqdm, *, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of this rank's documents for G queries: scores and numbers [G, kept], filled up with -inf and NO_DOCUMENT.

    And how wrong a score of theirs may be, [G]. All on the CPU.
    """
    assert request.queries is not None
    assert request.documents is not None
    queries = torch.from_numpy(request.queries.rows(group)).to(request.device)
    lengths = queries.norm(dim=1)
    asked = queries.double() if exact else queries
    best = BestSoFar(len(group), kept, request.device)
    longest = 0.0
    with full_precision(request.device):
        for start in range(documents.start, documents.stop, sizes.chunk):
            stop = min(start + sizes.chunk, documents.stop)
            chunk = torch.from_numpy(request.documents.rows(slice(start, stop))).to(request.device)
            length = float(chunk.norm(dim=1).max())
            longest = max(longest, length if math.isfinite(length) else math.inf)
            for first_query, first, products in inner_products(asked, chunk, sizes.block, sizes.tile):
                best.add(products.float(), first_query, start - documents.start + first)
            del chunk  # before the next one is read
            bar.update(stop - start)
    furthest = max(distributed.gather_objects(longest))
    _refuse_broken(request, group, lengths, furthest)
    scores, indices = best.result(documents.stop - documents.start, sizes.block)
    missing = kept - scores.shape[1]
    scores = F.pad(scores.cpu(), (0, missing), value=-torch.inf)
    indices = F.pad(indices.cpu() + documents.start, (0, missing), value=NO_DOCUMENT)
    return scores, indices, lengths.cpu() * (4 * queries.shape[1] ** 0.5 * 2**-24 * furthest)


def _refuse_broken(request: SearchRequest, group: Ints, lengths: Tensor, furthest: float) -> None:
    """On all ranks alike."""
    broken = torch.nonzero(~torch.isfinite(lengths))
    what = "a document"
    if broken.numel():
        what = f"the query {request.data.queries[int(group[int(broken[0])])][:80]!r}"
    if broken.numel() or not math.isfinite(furthest):
        raise DataError(
            f"{request.data.source}: the vector of {what} is not finite, or too long for fp32. Look for a broken model, or "
            "empty the store of embeddings if it was written by one."
        )


def _merged(scores: Tensor, indices: Tensor, at_once: int, *, keep: bool) -> tuple[Tensor, Tensor]:
    """The best of what all ranks found for some queries, [m, kept], where it is kept; for `at_once` queries at a time."""
    parts = [(scores[:0], indices[:0])]
    for start in range(0, len(scores), at_once):
        rows = slice(start, start + at_once)
        found = _of_all_ranks(scores[rows]), _of_all_ranks(indices[rows])
        if keep:
            parts.append(rank(*found, scores.shape[1]))
    return torch.cat([s for s, _ in parts]), torch.cat([i for _, i in parts])


def _of_all_ranks(rows: Tensor) -> Tensor:
    """[m, kept] of each rank -> [m, W x kept]."""
    world = distributed.world_size()
    together = distributed.gather_plain(rows.contiguous(), [len(rows)] * world)
    return together.view(world, *rows.shape).transpose(0, 1).reshape(len(rows), -1)


def _rescored(request: SearchRequest, queries: Ints, indices: Tensor, sizes: Plan) -> tuple[Tensor, Tensor]:
    """The same documents [m, kept] by their own scores, best first."""
    scores = pair_scores(
        request, np.repeat(queries, indices.shape[1]), indices.numpy().reshape(-1), pairs_at_once=sizes.pairs
    ).view(indices.shape)
    return rank(scores.masked_fill_(indices == NO_DOCUMENT, -torch.inf), indices, indices.shape[1])
