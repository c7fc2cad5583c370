"""Which rows are in which global batch: a pure function of (seed, epoch, step), whatever the number of ranks.

Every rank computes the same plan from the same numbers, takes its own slice of each batch, and sends nothing. To resume is
to ask for a later step. The plan of an epoch:

1. Each source has an endless row of passes. A pass is all rows of the source once, in an order of (seed, source, pass),
   spread over batches so that no text is in a batch twice where that can be had (`spread.py`), or so that each batch holds
   several rows of each of its classes (`grouping.py`), or rows that are alike (`neighbourhoods.py`).
2. `one_source`: an epoch takes the next batches of each source, as many as its share says, and shuffles them together.
   `blended`: it takes the next rows of each source, and spreads them all over batches in the same way.
   `sources_per_batch` above 1: it cuts the next rows of each source into parts, and deals those out (`parts.py`).
3. A tail smaller than half a batch joins the batch before it; a larger one is a batch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xxhash

from embedtrain.data.draws import Ints, draw
from embedtrain.data.grouping import grouped
from embedtrain.data.index import SourceIndex
from embedtrain.data.mixture import Mixture
from embedtrain.data.neighbourhoods import _apart, neighbourhoods
from embedtrain.data.parts import NO_BATCH, check_parts, deal_parts, interleave
from embedtrain.data.spread import RowKeys, count_meeting, spread
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import NO_LABEL, text_id


@dataclass(frozen=True, slots=True)
class Rows:
    """M rows: which source, which row of it, and how often that source was gone through before (which picks the draw)."""

    source: Ints  # [M]
    row: Ints  # [M]
    visit: Ints  # [M]

    def __len__(self) -> int:
        return self.row.size

    def __getitem__(self, index: slice | Ints) -> Rows:
        return Rows(self.source[index], self.row[index], self.visit[index])

    @staticmethod
    def cat(parts: list[Rows]) -> Rows:
        return Rows(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("source", "row", "visit")))


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The global batches of an epoch. Batch b is `rows[offsets[b]:offsets[b + 1]]`."""

    rows: Rows
    offsets: Ints
    num_meeting: int  # rows that share a text with another row of their batch, since no other place was left

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, step: int) -> Rows:
        return self.rows[self.offsets[step] : self.offsets[step + 1]]

    @property
    def sizes(self) -> Ints:
        return np.diff(self.offsets)


class Sampler:
    """Plans of all epochs of a run.

    global_batch_size   queries per step, all ranks and micro-batches counted
    num_positives       positives drawn for a query at each visit (None = all)
    num_negatives       hard negatives likewise
    drop_last           leave out the tail of each pass (a different one each time)
    sources_per_batch   sources that fill a batch, an equal part of each; 1 leaves it to `mixture.batching`
    softmaxes           (micro-batches, ranks) whose slices of a batch share no negatives: a neighbourhood each, in place of one
                        neighbourhood a batch
    clusters            of each row of some sources [R], by source, numbered so that near numbers are near clusters: batches of
                        such a source are neighbourhoods

    A source may have a batch size and numbers of its own, which take the place of the first three.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        seed: int,
        global_batch_size: int,
        num_positives: int | None = 1,
        num_negatives: int | None = None,
        drop_last: bool = False,
        sources_per_batch: int = 1,
        softmaxes: tuple[int, int] = (1, 1),
        clusters: Mapping[str, Ints] | None = None,
    ) -> None:
        _check_numbers(global_batch_size, num_positives, num_negatives)
        sources = list(mixture.sources.values())
        self.mixture = mixture
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.drop_last = drop_last
        self.sources_per_batch = sources_per_batch
        self.softmaxes = softmaxes
        # Of each source:
        self.batch_sizes = [_or(source.batch_size, global_batch_size) for source in sources]
        self.num_positives = [_or(source.num_positives, num_positives) for source in sources]
        self.num_negatives = [_or(source.num_negatives, num_negatives) for source in sources]
        self.texts_per_label = [source.texts_per_label for source in sources]
        self.clusters = {name: np.asarray(of_rows, dtype=np.int64) for name, of_rows in (clusters or {}).items()}
        if self.is_of_parts:
            check_parts(mixture, sources_per_batch, global_batch_size, self.clusters)
        self._check_batches()
        self._pass_sizes = [
            batch_sizes(int(rows), batch, drop_last)
            for rows, batch in zip(mixture.sizes, self.batch_sizes, strict=True)
        ]
        self.parts = self._parts() if self.is_of_parts else []
        self.quotas = self._quotas()
        self._pass = lru_cache(maxsize=2 * len(mixture.names))(self._plan_pass)  # the pass at hand and the one after it
        self.epoch = lru_cache(maxsize=1)(self._plan_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """The same for every epoch."""
        if self.is_of_parts:
            return self.parts_of_batches.size
        if self.has_one_source:
            return int(self.quotas.sum())
        return batch_sizes(int(self.quotas.sum()), self.global_batch_size, self.drop_last).size

    @property
    def is_of_parts(self) -> bool:
        """Whether a batch is of several sources, an equal part of each."""
        return self.sources_per_batch > 1

    @property
    def has_one_source(self) -> bool:
        """Whether all queries of a batch are of one source."""
        return self.mixture.batching == "one_source" and not self.is_of_parts

    @property
    def parts_of_batches(self) -> Ints:
        """Parts of each batch of an epoch, before they are shuffled."""
        return batch_sizes(sum(part.size for part in self.parts), self.sources_per_batch, self.drop_last)

    @property
    def smallest_batch(self) -> tuple[int, str]:
        """Rows of the smallest batch that any epoch can hold, and its source, "" where batches are of several."""
        if self.is_of_parts:
            return int(np.sort(np.concatenate(self.parts))[: self.parts_of_batches.min()].sum()), ""
        if self.has_one_source:
            return min(
                (int(sizes.min()), name) for name, sizes in zip(self.mixture.names, self._pass_sizes, strict=True)
            )
        return int(batch_sizes(int(self.quotas.sum()), self.global_batch_size, self.drop_last).min()), ""

    @property
    def fingerprint(self) -> dict[str, str]:
        """What batches depend on besides the settings: a run is resumed only where this is the same."""
        known = {"the data": self.mixture.fingerprint}
        if self.clusters:
            digest = xxhash.xxh3_128()
            for name in sorted(self.clusters):
                digest.update(name.encode())
                digest.update(self.clusters[name].tobytes())
            known["the neighbourhoods of the data"] = digest.hexdigest()
            if self.softmaxes != (1, 1):
                known["micro-batches and ranks, which share no negatives,"] = " x ".join(map(str, self.softmaxes))
        return known

    def batches_per_pass(self, source: int) -> int:
        """Batches that all rows of a source make, once through."""
        return self._pass_sizes[source].size

    def __getstate__(self) -> dict[str, Any]:
        # Workers are asked for rows and draw; plans stay in the main process.
        return {name: value for name, value in self.__dict__.items() if name not in ("_pass", "epoch", "clusters")}

    def _quotas(self) -> Ints:
        """Batches, or rows where batches are of several sources, of each source in an epoch."""
        if self.is_of_parts:
            return np.array([part.sum() for part in self.parts], dtype=np.int64)
        if self.mixture.batching == "blended":
            return self.mixture.allot(self.mixture.sizes, np.ones_like(self.mixture.sizes))
        return self.mixture.allot(
            np.array([sizes.size for sizes in self._pass_sizes], dtype=np.int64), np.array(self.batch_sizes)
        )

    def _parts(self) -> list[Ints]:
        """Rows of each part of each source in an epoch."""
        rows = self.global_batch_size // self.sources_per_batch
        natural = [batch_sizes(int(size), rows, self.drop_last) for size in self.mixture.sizes]
        if self.mixture.by_size:
            return natural
        whole = np.minimum(self.mixture.sizes, rows)
        quotas = self.mixture.allot(np.array([part.size for part in natural], dtype=np.int64), whole)
        return [np.full(quota, size) for quota, size in zip(quotas, whole, strict=True)]

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        if self.is_of_parts:
            return self._of_parts(epoch)
        return self._one_source(epoch) if self.has_one_source else self._blended(epoch)

    def _one_source(self, epoch: int) -> EpochPlan:
        batches: list[Rows] = []
        meeting = 0
        for source, quota in enumerate(self.quotas):
            per_pass = self._pass_sizes[source].size
            for number in range(epoch * quota, (epoch + 1) * quota):
                plan = self._pass(source, number // per_pass)
                batches.append(plan[number % per_pass])
                meeting += plan.num_meeting if number % per_pass == 0 else 0
        order = (
            self._generator("order", epoch).permutation(len(batches)) if len(self.quotas) > 1 else range(len(batches))
        )
        shuffled = [batches[b] for b in order]
        return EpochPlan(Rows.cat(shuffled), _offsets([len(b) for b in shuffled]), meeting)

    def _blended(self, epoch: int) -> EpochPlan:
        pool = Rows.cat([self._next_rows(source, epoch) for source in range(len(self.quotas))])
        sizes = batch_sizes(len(pool), self.global_batch_size, self.drop_last)
        order, meeting = spread(self._keys(pool), sizes, self._generator("blended", epoch))
        return EpochPlan(pool[order], _offsets(sizes), meeting)

    def _of_parts(self, epoch: int) -> EpochPlan:
        generator = self._generator("parts", epoch)
        pool = Rows.cat([self._next_rows(source, epoch) for source in range(len(self.quotas))])
        batches, rows = deal_parts(self.parts, self.parts_of_batches, self.sources_per_batch, generator)
        batch = np.repeat(batches, rows)
        order = np.argsort(batch, kind="stable")[np.count_nonzero(batch == NO_BATCH) :]
        batch = batch[order]
        sizes, keys = np.bincount(batch), self._keys(pool)
        order = _apart(pool.source[order], keys, order, sizes, generator)
        order = order[interleave(batch, pool.source[order])]
        return EpochPlan(pool[order], _offsets(sizes), count_meeting(keys, order, sizes))

    def _next_rows(self, source: int, epoch: int) -> Rows:
        """The rows that this epoch takes from a source, going on where the last epoch stopped."""
        size, quota = int(self.mixture.sizes[source]), int(self.quotas[source])
        positions = np.arange(epoch * quota, (epoch + 1) * quota, dtype=np.int64)
        visits, places = positions // size, positions % size
        rows = np.empty_like(positions)
        for visit in range(int(visits[0]), int(visits[-1]) + 1):
            now = visits == visit
            rows[now] = self._generator(self.mixture.names[source], visit).permutation(size)[places[now]]
        return Rows(np.full_like(positions, source), rows, visits)

    def _plan_pass(self, source: int, visit: int) -> EpochPlan:
        """All rows of one source once, in batches."""
        size, sizes = int(self.mixture.sizes[source]), self._pass_sizes[source]
        number = np.arange(size, dtype=np.int64)
        rows = Rows(np.full_like(number, source), number, np.full_like(number, visit))
        keys, generator = self._keys(rows), self._generator(self.mixture.names[source], visit)
        per_label = self.texts_per_label[source]
        clusters, batch = self.clusters.get(self.mixture.names[source]), self.batch_sizes[source]
        if per_label is not None:
            shape = (batch // per_label, per_label)
            order = grouped(self.mixture.indexes[source].label_ids, keys, sizes, shape, generator)
            meeting = count_meeting(keys, order, sizes)
        elif clusters is not None:
            slices = self.slices(sizes)
            order = neighbourhoods(clusters, keys, slices, batch // math.prod(self.softmaxes), generator)
            meeting = count_meeting(keys, order, slices)
        else:
            order, meeting = spread(keys, sizes, generator)
        return EpochPlan(rows[order], _offsets(sizes), meeting)

    def slices(self, sizes: Ints) -> Ints:
        """Rows of every softmax, in the order of the rows, of batches of so many rows."""
        for parts in self.softmaxes:
            ends = sizes[:, None] * np.arange(parts + 1) // parts  # as `part` cuts
            sizes = np.diff(ends, axis=1).ravel()
        return sizes

    def draws(self, rows: Rows, negatives: Mapping[str, Ints] | None = None) -> list[tuple[list[int], list[int]]]:
        """(positives, hard negatives) that each row brings: their numbers in the row.

        `negatives`: hard negatives of each row of some sources [R], where others than those of the data are drawn from.
        """
        drawn: list[tuple[list[int], list[int]]] = [([], [])] * len(rows)
        for source in np.unique(rows.source):
            at = np.flatnonzero(rows.source == source)
            mined = (negatives or {}).get(self.mixture.names[source])
            here = self._draw(int(source), rows[at], mined)
            sides = [np.split(which, np.cumsum(taken)[:-1]) for taken, which in here]
            for place, *numbers in zip(at, *sides, strict=True):
                drawn[place] = (numbers[0].tolist(), numbers[1].tolist())
        return drawn

    def _draw(self, source: int, rows: Rows, mined: Ints | None = None) -> list[tuple[Ints, Ints]]:
        """For rows of one source: how many positives each draws, and which; the same of hard negatives."""
        index = self.mixture.indexes[source]
        sides = (
            ("positives", index.num_positives, self.num_positives[source]),
            ("negatives", index.num_negatives if mined is None else mined, self.num_negatives[source]),
        )
        return [
            draw(counts[rows.row], wanted, rows=rows.row, visits=rows.visit, seed=self._stream(source, side))
            for side, counts, wanted in sides
        ]

    def _keys(self, rows: Rows) -> RowKeys:
        """Ids of the texts that each row brings into a batch: drawn positives first, then the query, then negatives."""
        ids, owners = [], []
        for source in np.unique(rows.source):
            index, at = self.mixture.indexes[source], np.flatnonzero(rows.source == source)
            row = rows.row[at]
            (taken_p, which_p), (taken_n, which_n) = self._draw(int(source), rows[at])
            ids += [
                index.positive_ids[np.repeat(index.positive_offsets[row], taken_p) + which_p],
                index.query_ids[row],
                index.negative_ids[np.repeat(index.negative_offsets[row], taken_n) + which_n],
            ]
            owners += [np.repeat(at, taken_p), at, np.repeat(at, taken_n)]
        owner = np.concatenate(owners)
        by_row = np.argsort(owner, kind="stable")
        return RowKeys.of(np.concatenate(ids)[by_row], np.bincount(owner, minlength=len(rows)))

    def _check_batches(self) -> None:
        """That each source fills a batch, or its part of one, where it must, and has the classes that its batches ask for."""
        one_source = self.mixture.batching == "one_source"
        for number, (name, per_label) in enumerate(zip(self.mixture.names, self.texts_per_label, strict=True)):
            if per_label is not None:
                _check_classes(name, self.batch_sizes[number], per_label, self.mixture.indexes[number])
            if name in self.clusters:
                _check_clusters(name, self.clusters[name], int(self.mixture.sizes[number]), per_label, one_source)
                check_slices(name, self.batch_sizes[number], self.softmaxes)
        what = "parts" if self.is_of_parts else "batches"
        filled = [batch // self.sources_per_batch for batch in self.batch_sizes]
        short = [
            f"{name} ({rows} rows, {what} of {batch})"
            for name, rows, batch in zip(self.mixture.names, self.mixture.sizes, filled, strict=True)
            if rows < batch and one_source
        ]
        if self.drop_last and (short or self.mixture.sizes.sum() < min(self.batch_sizes)):
            raise ConfigError(
                f"data.drop_last=true drops every row of {', '.join(short) or 'the data'}. Lower "
                f"training.global_batch_size={self.global_batch_size} (or batch_size of the source), or set "
                "data.drop_last=false."
            )

    def _stream(self, source: int, side: str) -> int:
        return text_id(f"{self.seed}/{self.mixture.names[source]}/{side}")

    def _generator(self, name: str, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, text_id(name), number])


def batch_sizes(rows: int, batch: int, drop_last: bool = False) -> Ints:
    """Sizes of the batches that `rows` make.

    >>> batch_sizes(10, 4).tolist(), batch_sizes(9, 4).tolist(), batch_sizes(10, 4, drop_last=True).tolist()
    ([4, 4, 2], [4, 5], [4, 4])
    """
    full, tail = divmod(rows, batch)
    sizes = [batch] * full
    if tail and not drop_last:
        if 2 * tail < batch and full:
            sizes[-1] += tail
        else:
            sizes.append(tail)
    return np.array(sizes, dtype=np.int64)


def part(count: int, number: int, parts: int) -> slice:
    """The `number`-th of `parts` contiguous slices of `count` things, equal to within one.

    >>> [part(7, i, 3) for i in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(count * number // parts, count * (number + 1) // parts)


def softmaxes(training: Mapping[str, Any], world_size: int) -> tuple[int, int]:
    """(micro-batches, ranks) whose slices of a batch share no negatives, where that is so by the wish of `training.gather`."""
    return (1, 1) if training["gather"] else (training["accumulation_steps"], world_size)


def refuse_small_batches(sampler: Sampler, world_size: int, accumulation_steps: int) -> None:
    """Raises ConfigError where some rank would have no row of some micro-batch."""
    smallest, source = sampler.smallest_batch
    needed = world_size * accumulation_steps
    if smallest < needed:
        raise ConfigError(
            f"the smallest global batch{source and f' of data.sources.{source}'} has {smallest} rows, but {world_size} ranks x "
            f"{accumulation_steps} micro-batches need one row each, {needed} in all. Use fewer ranks or a smaller "
            f"training.accumulation_steps, a larger training.global_batch_size (now {sampler.global_batch_size}) or batch_size "
            f"of the source (at least {2 * needed} is always enough when it has that many rows), or data.drop_last=true."
        )


def _offsets(sizes: Ints | list[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _or(own: int | None, common: Any) -> Any:
    return common if own is None else own


def _check_numbers(batch: int, num_positives: int | None, num_negatives: int | None) -> None:
    if batch < 1:
        raise ConfigError(f"training.global_batch_size={batch}: expected at least 1 query.")
    if num_positives is not None and num_positives < 1:
        raise ConfigError(f"data.num_positives={num_positives}: expected at least 1, or null for all.")
    if num_negatives is not None and num_negatives < 0:
        raise ConfigError(f"data.num_negatives={num_negatives}: expected 0 or more, or null for all.")


def _check_clusters(name: str, clusters: Ints, rows: int, per_label: int | None, one_source: bool) -> None:
    if not one_source:
        raise ConfigError(
            "data.neighbourhoods: with data.batching=blended a batch is of all sources, and clusters are of one. Set "
            "data.batching=one_source, or data.neighbourhoods to null."
        )
    if per_label is not None:
        raise ConfigError(
            f"data.sources.{name}.texts_per_label={per_label}: with data.neighbourhoods the model says which rows make a batch, "
            "and here the classes do. Set one of them to null."
        )
    if clusters.shape != (rows,):
        raise DataError(
            f"data.sources.{name}: {rows:,} rows, and {clusters.size:,} of them have a cluster. Expected all."
        )


def check_slices(name: str, batch: int, softmaxes: tuple[int, int]) -> None:
    """Raises ConfigError where the batches of a source that are neighbourhoods cannot be shared out equally."""
    micro, ranks = softmaxes
    if batch % (micro * ranks):
        raise ConfigError(
            f"training.gather=false: {batch} queries of data.sources.{name} cannot be shared out equally among {micro} "
            f"micro-batches x {ranks} ranks, of which each has a neighbourhood of its own. Set training.global_batch_size to a "
            f"multiple of {micro * ranks}."
        )


def _check_classes(name: str, batch: int, per_label: int, index: SourceIndex) -> None:
    key = f"data.sources.{name}.texts_per_label={per_label}"
    if batch % per_label or batch < 2 * per_label:
        raise ConfigError(
            f"{key}: batches of this source have {batch} queries, which is not 2 or more classes of {per_label}. Use "
            f"batch_size={max(2, round(batch / per_label)) * per_label}, or another texts_per_label."
        )
    missing = int((index.label_ids == NO_LABEL).sum())
    if missing:
        raise DataError(
            f"{key}: {missing:,} of {len(index):,} rows have no label. Name the column of the class (columns: {{label: "
            "<column>}}), label every row, or set texts_per_label to null."
        )
    if np.unique(index.label_ids).size < 2:
        raise DataError(f"{key}: all rows have one class. At least 2 are needed to tell one from the other.")
