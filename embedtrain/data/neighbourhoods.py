"""Rows into batches of one neighbourhood, so that the documents of other rows are hard negatives (CDE, arXiv:2410.02525).

Every row of a source has a cluster, and clusters are numbered so that those with near numbers are near (`embedtrain.mining`
finds both). A pass:

1. The rows of each cluster are shuffled and cut into batches. Fewer than a batch of each cluster are left over.
2. What is left over lies in one line, cluster by cluster in the order of their numbers, from a random one on and around the
   end. It is cut into batches too: they are of several clusters, and of near ones.
3. Batches come in random order. One of another size is the last of the pass, as without neighbourhoods, and is cut from the
   end of the line; where the line is too short for it, the cluster nearest to what is left over gives up a batch.
4. Rows that share a text change places with rows of their own cluster, as `spread.py` does it with all rows, so that no batch
   loses its neighbourhood. Where a cluster has no other place (it lies in one batch, or each of its batches has the text),
   they meet and are counted; the relation of the batch masks them by id.

Of the batches of full size as many are of one cluster as there can be: the whole batches that each cluster holds, all together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embedtrain.data.draws import Ints, expand
from embedtrain.data.spread import RowKeys, _is_free, _meeting

if TYPE_CHECKING:
    from embedtrain.data.sampling import Sampler

_ROUNDS = 20
_PATIENCE = 3  # rounds without progress (1 % fewer meetings) before the rest is left
_TRIES = 100_000  # changes of place looked at in a round, over all rows that need one
_MOST_TRIES = 16


def neighbourhoods(clusters: Ints, keys: RowKeys, sizes: Ints, batch: int, generator: np.random.Generator) -> Ints:
    """Rows in batch order.

    clusters [R]   of each row, from 0           keys   the texts that each row brings, for R rows
    sizes [B]      rows of each batch: `batch`, but for the last; where they add up to less than R, a rest is left out
    """
    by_cluster = generator.permutation(clusters.size)
    by_cluster = by_cluster[np.argsort(clusters[by_cluster], kind="stable")]
    counts = np.bincount(clusters)
    owner, number = expand(counts)
    whole = number < (_whole(counts, sizes, batch) * batch)[owner]
    first = generator.integers(counts.size)
    line = np.argsort((owner[~whole] - first) % counts.size, kind="stable")
    order = np.concatenate([by_cluster[whole], by_cluster[~whole][line]])[: int(sizes.sum())]
    full = int((sizes == batch).sum()) * batch
    order[:full] = generator.permutation(order[:full].reshape(-1, batch)).ravel()
    return _apart(clusters[order], keys, order, sizes, generator)


def clusters_met(clusters: Ints, sizes: Ints) -> Ints:
    """How many clusters each batch is of [B]; `clusters` [R] are those of the rows in batch order."""
    most = int(clusters.max()) + 1
    return np.bincount(np.unique(expand(sizes)[0] * most + clusters) // most)


def describe_neighbourhoods(sampler: Sampler) -> str:
    """Of the first epoch: how far its batches are neighbourhoods. A line for each source, for the log."""
    plan = sampler.epoch(0)
    source_of = plan.rows.source[plan.offsets[:-1]]
    lines = []
    for number, name in enumerate(sampler.mixture.names):
        if name in sampler.clusters:
            clusters = sampler.clusters[name]
            rows = plan.rows.row[plan.rows.source == number]
            met = clusters_met(clusters[rows], sampler.slices(plan.sizes[source_of == number]))
            lines.append(
                f"neighbourhoods of {name}: {clusters.max() + 1:,} clusters; {(met == 1).mean():.1%} of its batches are of one, "
                f"and a batch is of {met.mean():.2f} on average"
            )
    return "\n".join(
        [*lines, f"{plan.num_meeting:,} of {len(plan.rows):,} rows meet a text of their own in their batch"]
    )


def _whole(counts: Ints, sizes: Ints, batch: int) -> Ints:
    """Batches that each cluster fills by itself."""
    whole = counts // batch
    if whole.sum() > (sizes == batch).sum():  # the last batch is larger, and the line too short for it
        most = (counts % batch).argmax()
        able = np.flatnonzero(whole)
        whole[able[np.abs(able - most).argmin()]] -= 1
    return whole


def _apart(clusters: Ints, keys: RowKeys, order: Ints, sizes: Ints, generator: np.random.Generator) -> Ints:
    """`order`, with rows of one text in other batches of their cluster where it has such. `clusters` are those of `order`."""
    batch = expand(sizes)[0]
    by_cluster = np.argsort(clusters, kind="stable")
    starts = np.searchsorted(clusters[by_cluster], clusters)
    members = np.bincount(clusters)[clusters]
    order = _dealt(clusters, keys, order, batch, by_cluster, generator)
    best, fewest, stuck = order, order.size + 1, 0
    for _ in range(_ROUNDS):
        owner, key = keys.of_rows(order)
        meeting, present = _meeting(owner, batch[owner] * keys.distinct + key)
        stuck = 0 if meeting.size < 0.99 * fewest else stuck + 1
        if meeting.size < fewest:
            best, fewest = order.copy(), meeting.size
        if not fewest or stuck >= _PATIENCE:
            break
        # Each changes places with some row of its cluster, where neither meets a text of its own then.
        place = np.repeat(meeting, np.clip(_TRIES // meeting.size, 1, _MOST_TRIES))
        partner = by_cluster[starts[place] + generator.integers(members[place])]
        fits = _is_free(keys, order[place], batch[partner], present)
        fits &= _is_free(keys, order[partner], batch[place], present) & ~np.isin(partner, meeting)
        place, partner = place[fits], partner[fits]
        for side in (0, 1):  # a row goes to one place, and a place to one row: the first that fits
            _, chosen = np.unique((place, partner)[side], return_index=True)
            place, partner = place[chosen], partner[chosen]
        order[place], order[partner] = order[partner], order[place]
    return best


def _dealt(
    clusters: Ints, keys: RowKeys, order: Ints, batch: Ints, by_cluster: Ints, generator: np.random.Generator
) -> Ints:
    """Rows with the same first key lie together and are dealt out, each cluster's among its own places."""
    first = generator.permutation(keys.distinct)[keys.keys[keys.offsets[order]]]
    together = np.lexsort((first, clusters))
    _, part, sizes = np.unique(clusters * (batch[-1] + 1) + batch, return_inverse=True, return_counts=True)
    number = np.empty_like(part)
    number[np.argsort(part, kind="stable")] = expand(sizes)[1]
    turn = np.lexsort(((number + 0.5) / sizes[part], clusters))  # one row to each batch, then the next one
    dealt = np.empty_like(order)
    dealt[turn] = order[together]
    return dealt
