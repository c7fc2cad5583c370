"""Several teachers as one: their vectors side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.teachers.cached import CachedTeacher
from embedtrain.types import Teacher, TeacherInput, TrainingExample


class JoinedTeacher:
    """t = norm([t_1, t_2, ...]): the vectors of several teachers, each of length 1, side by side and again of length 1.

    The similarity of two texts is the mean of what the parts say: Stella and Jasper (arXiv:2412.19048), which join NV-Embed v2
    (4,096 dimensions) and Stella (8,192) to 12,288. `embedtrain teach` fills the stores of all parts.
    Cost: that of the parts.

    parts  teachers by name, in the order of their dimensions; null drops one
    name   of this teacher in the config; set by the program
    """

    def __init__(self, *, parts: Mapping[str, Teacher | None], name: str = "teacher") -> None:
        self.parts = {key: part for key, part in parts.items() if part is not None}
        if len(self.parts) < 2:
            raise ConfigError(
                f"teachers.{name}.parts: expected at least two teachers, got {', '.join(self.parts) or 'none'}. Add one: "
                f"'+teacher@teachers.{name}.parts.<name>=cached'"
            )
        for part in self.stores:
            part.name = name

    @property
    def stores(self) -> list[CachedTeacher]:
        """The parts whose vectors are written to disk beforehand."""
        return [part for part in self.parts.values() if isinstance(part, CachedTeacher)]

    @property
    def dim(self) -> int:
        return sum(part.dim for part in self.parts.values())

    def load(self, device: torch.device | str) -> None:
        for part in self.parts.values():
            part.load(device)

    def prepare(self, examples: Sequence[TrainingExample]) -> TeacherInput:
        nothing = torch.empty(0)
        return TeacherInput(nothing, nothing, tuple(part.prepare(examples) for part in self.parts.values()))

    def embed(self, inputs: TeacherInput) -> tuple[Tensor, Tensor]:
        """Queries [Q, E'] and documents [D, E'] of unit length, fp32, E' the dimensions of all parts together."""
        found = [part.embed(own) for part, own in zip(self.parts.values(), inputs.parts, strict=True)]
        device = max((vectors.device for side in found for vectors in side), key=lambda device: device.type != "cpu")
        queries, documents = (
            F.normalize(torch.cat([vectors.to(device) for vectors in side], dim=-1), dim=-1)
            for side in zip(*found, strict=True)
        )
        return queries, documents
