"""Whether a teacher's scores tell a query's documents apart. Where they do not, distillation teaches the student to see no
difference: scores behind a sigmoid that has saturated are the usual case.

    spread = mean over queries of the standard deviation of the scores of a query's own documents
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embedtrain.losses.wrappers.routed import Routed

# Of a softmax over scores / temperature: below this its largest share is about 1.2 times its mean, a flat target.
SOFTMAX_SPREAD = 0.1
# Of margins between cosines: differences that training noise hides.
MARGIN_SPREAD = 0.01


@dataclass(frozen=True, slots=True)
class ScoresRead:
    """Which scores a loss learns from, and below which spread they teach it nothing. A loss has it as `scores_read`."""

    teacher: str | None  # None: the scores of the rows
    least_spread: float

    @classmethod
    def softmax(cls, teacher: str | None, temperature: float) -> ScoresRead:
        return cls(teacher, SOFTMAX_SPREAD * temperature)

    @classmethod
    def margins(cls, teacher: str | None, scale: float) -> ScoresRead:
        return cls(teacher, MARGIN_SPREAD * scale)

    def problem(self, spread: float | None) -> str | None:
        """What is wrong with scores of this mean spread (None: no query brings two documents), if anything."""
        whose = "scores of the rows" if self.teacher is None else f"scores of the teacher {self.teacher!r}"
        if spread is None:
            return (
                f"the {whose}: no query brings two documents, so there is nothing to tell apart. Give the rows hard negatives "
                "or several positives, and set data.num_negatives accordingly."
            )
        if spread < self.least_spread:
            return (
                f"the {whose} hardly differ among a query's documents: their standard deviation is {spread:.2g} on average, and "
                f"this loss needs {self.least_spread:.2g}. Scores behind a sigmoid are squashed like that: give the values "
                "before it (logits), or lower loss.teacher_temperature."
            )
        return None


def scores_read(loss: nn.Module, sources: Collection[int]) -> Iterator[ScoresRead]:
    """What a loss and those inside it learn scores from, for queries of these sources (`text_id` of each)."""
    read = getattr(loss, "scores_read", None)
    if isinstance(read, ScoresRead):
        yield read
    for inner in loss.routes(sources) if isinstance(loss, Routed) else loss.children():
        yield from scores_read(inner, sources)


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread over some queries; those of several batches, sources or ranks add up."""

    total: float = 0.0
    queries: int = 0  # that brought two documents or more

    def __add__(self, other: Spread) -> Spread:
        return Spread(self.total + other.total, self.queries + other.queries)

    @property
    def mean(self) -> float | None:
        return self.total / self.queries if self.queries else None


def score_spread(scores: Tensor, owner: Tensor) -> Spread:
    """The spread of `scores` [D] over the documents of each query, `owner` [D].

    Scores that are not there (NaN), and documents that no query brought, do not count.
    """
    there = torch.isfinite(scores) & (owner >= 0)
    values, owner = scores[there].double(), owner[there]
    count = torch.bincount(owner)
    mean = values.new_zeros(len(count)).index_add_(0, owner, values) / count.clamp(min=1)
    squares = values.new_zeros(len(count)).index_add_(0, owner, (values - mean[owner]).square())
    deviation = (squares / count.clamp(min=1)).sqrt()[count > 1]
    return Spread(float(deviation.sum()), deviation.numel())
