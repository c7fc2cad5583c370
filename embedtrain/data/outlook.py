"""What batches will be made of, from the sizes of the sources and some of their rows: for `check`, which reads no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embedtrain.data.sampling import Sampler
from embedtrain.data.sources import Source
from embedtrain.types import TrainingExample

ROWS_LOOKED_AT = 100  # of each source


def some_rows(sources: Mapping[str, Source]) -> Iterator[TrainingExample]:
    """Rows spread over each source, told which it is."""
    for name, source in sources.items():
        for row in range(0, len(source), max(1, len(source) // ROWS_LOOKED_AT)):
            yield replace(source[row], source=name)


@dataclass(frozen=True)
class Pool:
    """Rows of which a batch is made: those of a source, or of all. What a query brings is a mean over some rows."""

    source: str | None  # None: all
    rows: int
    steps_per_epoch: int
    queries_per_step: int
    positives: float
    hard: float
    tokens: float  # of a query and what it brings, at most


@dataclass(frozen=True)
class ToMine:
    """What a miner will add to each row, at most."""

    negatives: int
    keep_own: bool


def pools_of(
    sampler: Sampler, lengths: Mapping[str, Any], examples: Sequence[TrainingExample], mined: ToMine | None = None
) -> list[Pool]:
    """One for each source, or one where batches are of several, in the proportions of an epoch. `lengths`: config.encoder."""
    pools = []
    for number, (name, source) in enumerate(sampler.mixture.sources.items()):
        seen = [example for example in examples if example.source == name]
        positives = _mean([_at_most(len(e.positives), sampler.num_positives[number]) for e in seen])
        hard = _mean([_at_most(_negatives(e, mined), sampler.num_negatives[number]) for e in seen])
        longest = {role: own or lengths[f"max_{role}_length"] for role, own in source.max_lengths.items()}
        pools.append(
            Pool(
                source=name,
                rows=int(sampler.mixture.sizes[number]),
                steps_per_epoch=int(sampler.quotas[number]),
                queries_per_step=sampler.batch_sizes[number],
                positives=positives,
                hard=hard,
                tokens=longest["query"] + (positives + hard) * longest["document"],
            )
        )
    return pools if sampler.has_one_source else [_together(pools, sampler)]


def _together(pools: Sequence[Pool], sampler: Sampler) -> Pool:
    parts = sampler.quotas / sampler.quotas.sum()
    mean = {name: float(parts @ [getattr(pool, name) for pool in pools]) for name in ("positives", "hard", "tokens")}
    if sampler.is_of_parts:  # a batch may be of the sources with the longest texts
        longest = sorted(pool.tokens for pool in pools)[-sampler.sources_per_batch :]
        mean["tokens"] = sum(longest) / len(longest)
    rows = sum(pool.rows for pool in pools)
    return Pool(None, rows, sampler.steps_per_epoch, sampler.global_batch_size, **mean)


def _negatives(example: TrainingExample, mined: ToMine | None) -> int:
    if mined is None:
        return len(example.negatives)
    return mined.negatives + (len(example.negatives) if mined.keep_own else 0)


def _mean(counts: Sequence[int]) -> float:
    return sum(counts) / max(1, len(counts))


def _at_most(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)
