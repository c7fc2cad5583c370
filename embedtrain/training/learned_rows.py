"""Which rows have learned the hard negatives that they have: the scores that `Triggered` follows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.training.refresh import Triggered
from embedtrain.types import Embeddings, TokenBatch


class LearnedRows:
    """For each of N rows of all sources: where in its list it stands, and how its negatives scored.

    Each rank notes what its own batches show; `settle` tells all ranks, in the order of steps, so that they agree to the bit
    whenever it is called.
    """

    def __init__(self, trigger: Triggered, sizes: Mapping[str, int]) -> None:
        self.trigger = trigger
        self.sizes = dict(sizes)
        ends = np.cumsum([0, *sizes.values()])
        self.first = dict(zip(sizes, ends[:-1].tolist(), strict=True))
        total = int(ends[-1])
        self.start = torch.zeros(total, dtype=torch.int64)  # [N] place in the list
        self.at_first = torch.full((total,), torch.nan, dtype=torch.float64)  # [N] score at the first visit
        self.summed = torch.zeros(total, dtype=torch.float64)  # [N] of the visits after it
        self.visits = torch.zeros(total, dtype=torch.int64)  # [N]
        self._noted: list[tuple[Tensor, Tensor]] = []

    def buffers(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("start", "at_first", "summed", "visits")}

    def observe(self, queries: Embeddings, documents: Embeddings, batch: TokenBatch) -> None:
        """Notes the mean cosine of each query's hard negatives in a batch of this rank."""
        relation = batch.relation
        hard = torch.nonzero(~relation.is_positive).flatten()
        owner = relation.owner[hard]
        scores = torch.cosine_similarity(
            queries.values[owner.to(queries.values.device)].float(),
            documents.values[hard.to(documents.values.device)].float(),
        )
        count = torch.bincount(owner, minlength=relation.num_queries)
        total = torch.zeros(relation.num_queries, dtype=torch.float64).index_add_(0, owner, scores.double().cpu())
        seen = count > 0
        rows = torch.tensor([self.first[s] + n for s, n in zip(batch.sources, batch.numbers, strict=True)])
        self._noted.append((rows[seen], (total / count.clamp(min=1))[seen]))

    def settle(self) -> None:
        """Brings together what all ranks noted. Every rank calls it."""
        found = distributed.gather_objects(self._noted)
        self._noted = []
        for step in range(max(map(len, found))):
            rows, scores = (torch.cat([part[step][side] for part in found]) for side in (0, 1))
            order = torch.argsort(rows, stable=True)  # no order of ranks
            rows, scores = rows[order], scores[order]
            new = self.at_first[rows].isnan()
            self.at_first[rows[new]] = scores[new]
            self.summed.index_add_(0, rows[~new], scores[~new])
            self.visits.index_add_(0, rows[~new], torch.ones_like(rows[~new]))

    def look(self, lengths: Mapping[str, Ints]) -> np.ndarray:
        """Moves the rows that have learned theirs on. `lengths`: of each row's list. Returns which moved, [N] bool."""
        now = self.summed / self.visits.clamp(min=1)
        learned = (self.visits > 0) & (self.trigger.factor * now < self.at_first) & (now.abs() < self.trigger.ceiling)
        length = torch.from_numpy(np.concatenate([lengths[name] for name in self.sizes]))
        learned &= self.start + self.trigger.num_negatives < length
        self.start[learned] += self.trigger.num_negatives
        self.at_first[learned] = torch.nan
        self.summed[learned] = 0
        self.visits[learned] = 0
        return learned.numpy()

    def starts(self) -> dict[str, Ints]:
        """Where in its list each row of each source stands, [R]."""
        return {name: self.start[first : first + self.sizes[name]].numpy().copy() for name, first in self.first.items()}


def refuse_other_embeddings(encoder: Encoder) -> None:
    """Raises ConfigError where the cosine of two texts is not that of two vectors."""
    if encoder.multi_vector or hasattr(encoder.pooling, "search_vectors"):
        raise ConfigError(
            "training.refresh: whether a row has learned its negatives is read from the cosines of vectors, and "
            f"{type(encoder.pooling).__name__} makes no single vector of a text. Use another pooling, or training.refresh={{}}"
        )
