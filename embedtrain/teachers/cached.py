"""A teacher whose vectors have been written to disk beforehand: training encodes nothing but the student."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from embedtrain.data.prompts import Prompts
from embedtrain.errors import ConfigError, DataError
from embedtrain.store.manifest import Manifest, Numbers
from embedtrain.store.ranks import on_main
from embedtrain.store.reader import VectorStore
from embedtrain.teachers.online import OnlineTeacher
from embedtrain.teachers.texts import RoleTexts, texts_of
from embedtrain.types import TeacherInput, TrainingExample


class CachedTeacher:
    """Reads each text's vector from a store that `embedtrain teach recipe=... teacher=<name>` has filled with `filled_by`.

    Vectors are found by text, role and prompt, so the data may be shuffled, drawn from and mixed at will; a text that the
    store has not is an error that says how to add it. The store knows which model filled it, and no other is accepted.
    Cost: a binary search per shard and text, in the workers; no forward pass. Disk: 2 or 4 bytes per dimension and text.

    store      folder of the store
    filled_by  the OnlineTeacher that fills it; null: a store that is only read, from wherever it came
    numbers    of the store: float16 (cosines right to 1e-3) | float32
    name       of this teacher in the config; set by the program
    """

    def __init__(
        self,
        *,
        store: str,
        filled_by: OnlineTeacher | None = None,
        numbers: Literal["float16", "float32"] = "float16",
        name: str = "teacher",
    ) -> None:
        if numbers not in ("float16", "float32"):
            raise ConfigError(f"teachers.{name}.numbers: expected float16 or float32, got {numbers!r}.")
        self.path = Path(store).expanduser()
        self.filled_by = filled_by
        self.numbers: Numbers = numbers
        self.name = name

    @cached_property
    def store(self) -> VectorStore:
        """Raises ConfigError where nothing has been written yet."""
        try:
            return VectorStore(self.path, command="`embedtrain teach`")
        except ConfigError as error:
            raise ConfigError(f"teachers.{self.name}.store: {error} {self._command}") from None

    @property
    def dim(self) -> int:
        return self.store.manifest.dim

    @property
    def prompts(self) -> Prompts:
        return Prompts(**self.store.manifest.identity["prompts"])

    def manifest(self) -> Manifest:
        """What `filled_by` writes. Reads the files of its weights."""
        if self.filled_by is None:
            raise ConfigError(
                f"teachers.{self.name}.filled_by: null, so there is no model that could fill the store. Name an OnlineTeacher."
            )
        return Manifest(identity=self.filled_by.identity(), dim=self.filled_by.dim, numbers=self.numbers)

    def load(self, device: torch.device | str) -> None:
        """Refuses a store of another model, and shards that are cut short. Once per run, before the first step."""
        if self.filled_by is not None:
            on_main(lambda: self.store.manifest.refuse_other(self.manifest(), self.path))
        _ = self.store.shards

    def prepare(self, examples: Sequence[TrainingExample]) -> TeacherInput:
        """The vectors of the examples' texts; runs in worker processes. Raises DataError naming a row that lacks one."""
        queries, documents = texts_of(examples)
        return TeacherInput(self._vectors(queries), self._vectors(documents))

    def embed(self, inputs: TeacherInput) -> tuple[Tensor, Tensor]:
        """Queries [Q, E'] and documents [D, E'] of unit length, fp32."""
        assert isinstance(inputs.queries, Tensor)
        assert isinstance(inputs.documents, Tensor)
        normalize = torch.nn.functional.normalize  # rounded to fp16 they are off by 1e-3
        return normalize(inputs.queries, dim=-1), normalize(inputs.documents, dim=-1)

    def _vectors(self, texts: RoleTexts) -> Tensor:
        vectors, found = self.store.find(texts.keys(self.prompts))
        if not found.all():
            first = int((~found).argmax())
            raise DataError(
                f"{texts.rows[first] or 'a row'}: the store {self.path} has no vector of the {texts.role} "
                f"{texts.texts[first][:60]!r} ({int((~found).sum())} of {found.size} are missing in this batch). {self._command}"
            )
        return torch.from_numpy(vectors)

    @property
    def _command(self) -> str:
        return f"Fill it: embedtrain teach recipe=<the run's recipe and settings> teacher={self.name}"
