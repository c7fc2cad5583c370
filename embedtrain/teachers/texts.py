"""The texts of some rows, in the order in which a batch holds them, with what stands around each for a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedtrain.data.draws import Ints
from embedtrain.data.prompts import PLACEHOLDER, Prompts
from embedtrain.store.keys import text_keys
from embedtrain.types import Role, TrainingExample


@dataclass(frozen=True, slots=True)
class RoleTexts:
    """N texts of one role. Documents come query by query, positives first, as `collate` has them."""

    role: Role
    texts: list[str]
    instructions: list[str | None]  # [N] of their rows
    rows: list[str]  # [N] where each came from, for messages

    def select(self, index: Sequence[int]) -> RoleTexts:
        return RoleTexts(
            self.role,
            [self.texts[i] for i in index],
            [self.instructions[i] for i in index],
            [self.rows[i] for i in index],
        )

    def around(self, prompts: Prompts) -> list[tuple[str, str]]:
        """What `prompts` put before and behind each text."""
        return [prompts.around(self.role, instruction=i) for i in self.heeded(prompts)]

    def heeded(self, prompts: Prompts) -> list[str | None]:
        """The instructions that these prompts have a place for: a teacher without one was not trained to be told."""
        wanted = PLACEHOLDER in prompts.template(self.role)
        return [instruction if wanted else None for instruction in self.instructions]

    def keys(self, prompts: Prompts) -> Ints:
        """[N] what each text is called in a store."""
        return text_keys(self.role, self.around(prompts), self.texts)


def texts_of(examples: Sequence[TrainingExample]) -> tuple[RoleTexts, RoleTexts]:
    """The queries and the documents of `examples`."""
    queries = [(e.query, e) for e in examples]
    documents = [(text, e) for e in examples for text in (*e.positives, *e.negatives)]
    return _role_texts("query", queries), _role_texts("document", documents)


def _role_texts(role: Role, texts: Sequence[tuple[str, TrainingExample]]) -> RoleTexts:
    return RoleTexts(role, [t for t, _ in texts], [e.instruction for _, e in texts], [e.row for _, e in texts])
