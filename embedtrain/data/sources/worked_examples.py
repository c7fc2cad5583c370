"""Rows whose instruction shows how the task was done for other queries: in-context examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Unpack

import numpy as np

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample

# What stands before the task, the query and its answer.
FORMS = {
    "e5": ("Instruct: ", "\nQuery: ", "\nResponse: "),
    "bge": ("<instruct>", "\n<query>", "\n<response>"),
}


def with_examples(task: str, examples: Sequence[tuple[str, str]], *, form: str = "e5") -> str:
    """The instruction that puts (query, answer) pairs before the query. Without any it is the task alone."""
    instruct, query, response = FORMS[form]
    return "".join(f"{task}{query}{asked}{response}{answer}\n\n{instruct}" for asked, answer in examples) + task


class WorkedExamples(Source):
    """The rows of another source, some with worked examples of their task before the query.

    bge-en-icl (arXiv:2409.15700) and LG-ANNA (arXiv:2506.07438): a few queries of the same task, with what answers them, come
    first. They are a part of the row's instruction, so all that reads instructions reads them. With the prompt "Instruct:
    {instruction}\\nQuery: " a text is

        Instruct: <task>
        Query: <query 1>
        Response: <answer 1>

        Instruct: <task>
        Query: <query>

    How many there are, from none to `most`, and which, is a pure function of (seed, row). Examples are other rows of the source,
    with another query, and no positive of the row as their answer. Rows must bring an instruction, or their source
    (rows.instruction). Give this source a max_query_length that holds the examples.

    rows        the source, of one task
    most        examples before a query, at most
    max_words   of each query and answer of an example
    form        e5: "Instruct: ...\\nQuery: ...\\nResponse: ..." | bge: "<instruct>...\\n<query>...\\n<response>..."
    seed        of numbers and choices
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        rows: Source,
        most: int = 5,
        max_words: int = 128,
        form: Literal["e5", "bge"] = "e5",
        seed: int = 0,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        if form not in FORMS:
            raise ConfigError(f"form={form!r}: expected {' or '.join(FORMS)}.")
        if most < 1 or max_words < 1 or seed < 0:
            raise ConfigError(
                f"most={most}, max_words={max_words}, seed={seed}: expected at least 1 example, 1 word, and a seed of 0 or more."
            )
        self.rows = rows
        self.most = most
        self.max_words = max_words
        self.form = form
        self.seed = seed

    @property
    def where(self) -> str:
        return self.rows.where

    def _mapping(self) -> str:
        return f"instruction <- the row's, with up to {self.most} other rows as examples"

    def _count(self) -> int:
        return len(self.rows)

    def _read(self, row: int) -> TrainingExample:
        return self._shown(self.rows[row], row)

    def _read_all(self) -> Iterator[TrainingExample]:
        return (self._shown(example, row) for row, example in enumerate(self.rows))

    def _shown(self, example: TrainingExample, row: int) -> TrainingExample:
        task = example.instruction or self.instruction
        if task is None:
            raise DataError(
                f"{example.row}: examples of a task, and the row names none. Set the instruction of its source "
                "(rows.instruction), or name its column."
            )
        return replace(example, instruction=with_examples(task, self._examples(example, row), form=self.form))

    def _examples(self, example: TrainingExample, row: int) -> list[tuple[str, str]]:
        rng = np.random.default_rng((self.seed, row))
        wanted = int(rng.integers(self.most + 1))
        own = {example.query, *example.positives}
        found: dict[int, tuple[str, str]] = {}
        for other in rng.integers(len(self.rows), size=4 * wanted).tolist():  # some may be unfit, or drawn twice
            if len(found) == wanted:
                break
            drawn = self.rows[other]
            if not own & {drawn.query, *drawn.positives}:
                found[other] = (self._cut(drawn.query), self._cut(drawn.positives[0]))
        return list(found.values())

    def _cut(self, text: str) -> str:
        return " ".join(text.split()[: self.max_words])
