"""What an epoch holds, as a table for the log."""

from __future__ import annotations

import numpy as np

from embedtrain.data.draws import Ints
from embedtrain.data.parts import crowded
from embedtrain.data.sampling import Sampler


def describe(sampler: Sampler) -> str:
    """The mixture: of each source its rows, weight, share, part of an epoch and what its rows bring.

    Passes are how often an epoch goes through the source; below 1 the next epoch goes on where this one stopped.
    """
    mixture = sampler.mixture
    total = int(sampler.quotas.sum())
    sizes = sorted(set(sampler.batch_sizes))
    epoch = (
        f"{sampler.steps_per_epoch:,} steps per epoch, {' or '.join(f'{size:,}' for size in sizes)} queries per step"
    )
    if len(mixture.names) == 1:
        index = mixture.indexes[0]
        return f"{mixture.names[0]}: {len(index):,} rows, {epoch}; of each row {_brought(0, sampler)}"
    lines = [f"{len(mixture.names)} sources, {describe_parts(sampler) or mixture.batching}: {epoch}"]
    width = max(map(len, mixture.names))
    for number, (name, index) in enumerate(zip(mixture.names, mixture.indexes, strict=True)):
        quota = int(sampler.quotas[number])
        passes = quota / (sampler.batches_per_pass(number) if sampler.has_one_source else len(index))
        lines.append(
            f"  {name:<{width}}  {len(index):,} rows, weight {mixture.weights[number]:g}, share {quota / total:.1%}, "
            f"{quota:,} {_unit(number, sampler)} per epoch ({passes:.2f} passes), {_brought(number, sampler)}"
        )
    return "\n".join(lines)


def equal_parts(sources_per_batch: int, queries: int) -> str:
    return f"{sources_per_batch} in each batch, {queries // sources_per_batch:,} queries of each"


def describe_parts(sampler: Sampler) -> str:
    """Of how many sources a batch is, and which of them have too many rows for that; "" where it is of one, or of all."""
    if not sampler.is_of_parts:
        return ""
    n, batches = sampler.sources_per_batch, sampler.parts_of_batches.size
    parts = np.array([part.size for part in sampler.parts])
    said = equal_parts(n, sampler.global_batch_size)
    for number, count in enumerate(crowded(parts, batches)):
        if count:
            said += (
                f" ({sampler.mixture.names[number]} is more than 1/{n} of all: {count:,} of its {parts[number]:,} parts share a "
                "batch with another of its own)"
            )
    return said


def _unit(source: int, sampler: Sampler) -> str:
    """What an epoch takes of a source; the size of batches where sources differ in it."""
    if not sampler.has_one_source:
        return "rows"
    return "batches" if len(set(sampler.batch_sizes)) == 1 else f"batches of {sampler.batch_sizes[source]:,}"


def _brought(source: int, sampler: Sampler) -> str:
    index = sampler.mixture.indexes[source]
    return (
        f"{_amount(index.num_positives, sampler.num_positives[source], 'positive')}, "
        f"{_amount(index.num_negatives, sampler.num_negatives[source], 'hard negative')}"
    )


def _amount(counts: Ints, wanted: int | None, what: str) -> str:
    """ "7 hard negatives (12 rows have fewer)" or, where all are taken, "0 to 9 hard negatives"."""
    if wanted is None:
        fewest, most = int(counts.min()), int(counts.max())
        return f"{fewest if fewest == most else f'{fewest} to {most}'} {what}s"
    fewer = int((counts < wanted).sum())
    return f"{wanted} {what}{'s' if wanted != 1 else ''}" + (f" ({fewer:,} rows have fewer)" if fewer else "")
