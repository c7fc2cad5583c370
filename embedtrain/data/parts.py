"""Parts of sources into batches of several sources, an equal part of each: `data.sources_per_batch`.

all-MiniLM fills each batch from two data sets, VLM2Vec-V2 (arXiv:2507.04590) from sub-batches of 64 rows. A part is
global_batch_size / n rows of one source.

1. Each batch draws n sources without replacement, in proportion to the parts that they have left. A source that has as many
   left as there are batches is in each of them, so every part finds a place, and the sources of a batch are different ones
   wherever that can be had: only a source with more parts than there are batches has several in one.
2. Rows that share a text change places with rows of their own source in other batches, where both fit (`neighbourhoods.py`).
3. The rows of a batch are interleaved: any slice of it, be it a rank's or a micro-batch's, is of equal parts as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from embedtrain.data.draws import Ints, expand
from embedtrain.data.mixture import Mixture
from embedtrain.errors import ConfigError

NO_BATCH = -1


def deal_parts(
    parts: Sequence[Ints], counts: Ints, per_batch: int, generator: np.random.Generator
) -> tuple[Ints, Ints]:
    """(batch, rows) of each part, source by source, in random order; NO_BATCH for parts that are left out.

    parts        rows of each part, for each source
    counts [B]   parts of each batch: `per_batch`, but for the last, which may have more or fewer
    """
    full, rest = _sources_of_batches(np.array([part.size for part in parts], dtype=np.int64), per_batch, generator)
    batch = np.repeat(np.arange(len(full)), per_batch)
    left_out = int(counts.sum()) < batch.size + rest.size
    batch = np.append(batch, np.full(rest.size, NO_BATCH if left_out else counts.size - 1))
    by_source = np.argsort(np.append(full.ravel(), rest), kind="stable")
    places = np.append(generator.permutation(counts.size), NO_BATCH)  # the last entry is that of NO_BATCH
    return places[batch[by_source]], np.concatenate([generator.permutation(part) for part in parts])


def interleave(batch: Ints, source: Ints) -> Ints:
    """Of rows in batch order, the order in which any slice of a batch holds its sources in proportion."""
    _, group, sizes = np.unique(batch * (source.max() + 1) + source, return_inverse=True, return_counts=True)
    place = np.empty_like(batch)
    place[np.argsort(group, kind="stable")] = expand(sizes)[1]
    return np.lexsort(((place + 0.5) / sizes[group], batch))


def crowded(parts: Ints, batches: int) -> Ints:
    """Of each source, the parts that must share their batch with another one of it; `parts` [sources] has each."""
    return np.maximum(parts - batches, 0)


def check_parts(mixture: Mixture, per_batch: int, batch: int, clusters: Mapping[str, Ints]) -> None:
    """Raises ConfigError where a batch of `batch` queries cannot be of `per_batch` sources in equal parts."""
    key = f"data.sources_per_batch={per_batch}"
    if mixture.batching != "one_source":
        raise ConfigError(
            f"{key}: with data.batching={mixture.batching} a batch is of all sources. Set data.batching=one_source, or "
            "data.sources_per_batch=1."
        )
    if per_batch > len(mixture.names):
        raise ConfigError(
            f"{key}: there are {len(mixture.names)} sources ({', '.join(mixture.names)}). Name more, or ask for fewer."
        )
    if batch % per_batch:
        raise ConfigError(
            f"{key} does not divide training.global_batch_size={batch}: each source brings an equal part."
        )
    for name, source in mixture.sources.items():
        for setting in ("batch_size", "texts_per_label"):
            if getattr(source, setting) is not None:
                raise ConfigError(
                    f"data.sources.{name}.{setting}={getattr(source, setting)}: with {key} a batch is of several sources. Set "
                    "data.sources_per_batch=1, or this to null."
                )
    if clusters:
        raise ConfigError(
            f"data.neighbourhoods: with {key} a batch is of several sources, and clusters are of one. Set "
            "data.sources_per_batch=1, or data.neighbourhoods to null."
        )


def _sources_of_batches(parts: Ints, per_batch: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """The sources of all full batches [M, n], and of the fewer than n parts left over, which are of the largest sources."""
    rest = np.argsort(-parts, kind="stable")[: int(parts.sum()) % per_batch]
    left = parts.copy()
    left[rest] -= 1
    batches = int(left.sum()) // per_batch
    if not batches:
        return np.empty((0, per_batch), dtype=np.int64), rest
    always = np.repeat(np.arange(left.size), left // batches)
    left %= batches
    drawn = per_batch - always.size
    found = np.empty((batches, per_batch), dtype=np.int64)
    found[:, drawn:] = always
    for number in range(batches if drawn else 0):
        # The first of clocks that ring at these rates: n draws without replacement.
        with np.errstate(divide="ignore"):
            rings = generator.exponential(size=left.size) / left
        rings[left == batches - number] = -1.0
        chosen = np.sort(np.argpartition(rings, drawn - 1)[:drawn])
        found[number, :drawn] = chosen
        left[chosen] -= 1
    return found, rest
