"""Similarity matrix: the student's texts are as similar to each other as the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedtrain.losses.attach import attach
from embedtrain.losses.distillation.texts import KINDS, all_vectors, refuse_unknown_kinds, texts_of
from embedtrain.types import EmbeddingBatch, LossOutput, Needs

# Texts whose similarities to all others are in hand at once. Changes memory, never the result.
ROWS_AT_ONCE = 1024


class SimilarityMatrix(nn.Module):
    """Two texts are as similar for the student as for the teacher.

        mean over texts i, j of  ( y_i . y_j - t_i . t_j )^2

    y are the student's vectors, t the teacher's. Stella and Jasper (arXiv:2412.19048, L_sim), times 200 there. Any number
    of dimensions on either side, and the student's space may be turned against the teacher's: EmbeddingMatch asks for
    more. RelativeTriplets asks for less, the order alone.
    Cost: three products of the batch's texts with themselves and one of the teacher's; memory linear in the texts.

    teacher  a name under `teachers`
    texts    any of queries, positives, negatives: pairs are formed among all of them
    """

    def __init__(self, *, teacher: str = "teacher", texts: Sequence[str] = KINDS):
        super().__init__()
        refuse_unknown_kinds(texts)
        self.teacher = teacher
        self.texts = tuple(texts)
        self.needs = Needs(teachers=(teacher,))

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        kinds = texts_of(batch, self.texts)
        learnt, taught = all_vectors(batch, kinds), all_vectors(batch.teacher(self.teacher), kinds)
        own = torch.nonzero(torch.cat([kind.own for kind in kinds])).flatten()
        with torch.no_grad(), torch.autocast(learnt.device.type, enabled=False):
            value, gradient = squared_difference(learnt, taught.to(learnt), own)
        return LossOutput(attach(value, [gradient], learnt) / max(1, len(learnt)) ** 2)


def squared_difference(y: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over `rows` i and all j of (y_i . y_j - t_i . t_j)^2, and its gradient by y [M, E]."""
    value, gradient = y.new_zeros(()), torch.zeros_like(y)
    for some in rows.split(ROWS_AT_ONCE):
        difference = y[some] @ y.T - t[some] @ t.T
        value += difference.square().sum()
        gradient.addmm_(difference.T, y[some], alpha=2)
        gradient.index_add_(0, some, difference @ y, alpha=2)
    return value, gradient
