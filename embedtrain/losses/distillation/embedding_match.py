"""Embedding match: the student's embedding of a text becomes the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.distillation.texts import KINDS, refuse_unknown_kinds, texts_of
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class EmbeddingMatch(nn.Module):
    """The student's vector y of a text becomes the teacher's vector t: the mean over texts of their distance.

        squared_l2   ||y - t||^2            LEAF (arXiv:2509.12539), EmbeddingGemma (arXiv:2509.20354, section 2.2)
        l2           ||y - t||              EmbedDistill (arXiv:2301.12005, eq. 7)
        cosine       1 - cos(y, t)          Stella and Jasper (arXiv:2412.19048, L_cos), times 10 there
        mse          ||y - t||^2 / E'       Reimers and Gurevych 2020 (arXiv:2004.09813)

    On the unit sphere squared_l2 is twice cosine. LEAF reads every text once and averages over texts; EmbeddingGemma
    adds up the means over queries, positives and hard negatives. Where the vectors are those of the teacher, documents
    embedded by the teacher can be searched with queries embedded by the student.
    Cost: linear in the texts.

    teacher     a name under `teachers`
    distance    squared_l2 | l2 | cosine | mse
    texts       any of queries, positives, negatives
    average     texts: one mean over all texts; kinds: the sum of the means over each kind
    projection  none: student and teacher have equally many dimensions; to export a student in the teacher's space give the
                encoder the layer, encoder.projection_dim=<teacher's dimensions>.
                dropped: a linear layer from student to teacher, trained here and dropped at export: the student keeps its
                size, and lies in the teacher's space no longer
    """

    def __init__(
        self,
        *,
        teacher: str = "teacher",
        distance: Literal["squared_l2", "l2", "cosine", "mse"] = "squared_l2",
        texts: Sequence[str] = KINDS,
        average: Literal["texts", "kinds"] = "texts",
        projection: Literal["none", "dropped"] = "none",
    ):
        super().__init__()
        refuse_unknown_kinds(texts)
        for key, value, allowed in (
            ("distance", distance, tuple(DISTANCES)),
            ("average", average, ("texts", "kinds")),
            ("projection", projection, ("none", "dropped")),
        ):
            if value not in allowed:
                raise ConfigError(f"loss.{key}: expected one of {', '.join(allowed)}, got {value!r}.")
        self.teacher = teacher
        self.distance = DISTANCES[distance]
        self.texts = tuple(texts)
        self.average = average
        self.has_projection = projection == "dropped"
        self.projection: nn.Linear | None = None  # made by `prepare`, which knows the sizes
        self.needs = Needs(teachers=(teacher,))

    def prepare(self, *, embedding_dim: int, teachers: Mapping[str, int]) -> None:
        """Makes the projection. Raises ConfigError where student and teacher differ in size and there is none."""
        if self.teacher not in teachers:
            return  # refused by whoever compares what is needed with what there is
        if self.has_projection:
            self.projection = nn.Linear(embedding_dim, teachers[self.teacher])
        else:
            self._refuse_other_size(embedding_dim, teachers[self.teacher])

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        taught_batch = batch.teacher(self.teacher)
        kinds = texts_of(batch, self.texts)
        total = max(1, sum(kind.numbers.numel() for kind in kinds))
        losses, cosines = [], []
        for kind in kinds:
            learnt, taught = kind.vectors(batch)[kind.own], kind.vectors(taught_batch)[kind.own].detach()
            with torch.autocast(learnt.device.type, enabled=False):
                learnt = self._projected(learnt, taught.shape[1])
                parts = total if self.average == "texts" else max(1, kind.numbers.numel())
                losses.append(self.distance(learnt, taught.to(learnt)).sum() / parts)
                cosines.append(F.cosine_similarity(learnt.detach(), taught.to(learnt), dim=-1).sum() / total)
        return LossOutput(torch.stack(losses).sum(), {"teacher_cosine": torch.stack(cosines).sum()})

    def _projected(self, learnt: Tensor, size: int) -> Tensor:
        if self.projection is not None:
            return self.projection(learnt.to(self.projection.weight))
        self._refuse_other_size(learnt.shape[1], size)
        return learnt

    def _refuse_other_size(self, student: int, teacher: int) -> None:
        if student != teacher:
            raise ConfigError(
                f"loss.projection: none, but the student's embeddings have {student} dimensions and those of the teacher "
                f"{self.teacher!r} have {teacher}. Use encoder.projection_dim={teacher} (a layer that is exported), or "
                "loss.projection=dropped (one that is not), or a loss that compares relations (similarity_matrix, score_kl)."
            )


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared_l2": lambda y, t: (y - t).square().sum(-1),
    "l2": lambda y, t: torch.linalg.vector_norm(y - t, dim=-1),
    "cosine": lambda y, t: 1 - F.cosine_similarity(y, t, dim=-1),
    "mse": lambda y, t: (y - t).square().mean(-1),
}
