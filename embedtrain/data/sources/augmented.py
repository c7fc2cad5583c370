"""Texts and edited forms of them: positives of texts that nobody paired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from embedtrain.data.sources.base import Source, SourceSettings
from embedtrain.data.sources.lines import LinesFile
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample


class Augmented(Source):
    """Each text twice, edited word by word, each time by other draws: contrast learns what both still say.

    Unsupervised document embeddings by contrastive augmentation (arXiv:2103.14542): of edits of words, sentences and whole
    documents, those of words taught most. Every word is, in this order, replaced by a synonym, left out, or changes places with
    the word behind it, each with its probability; one word always stays. Words are what blanks separate, so a text without blanks
    is one word. Texts are read with single blanks.

    What is drawn is a pure function of (seed, row), so it is the same at every visit, in every process and after a resume. The
    query of each row of the other source is its text; whatever else the row brings is left out.

    rows       the source of texts
    delete     probability that a word is left out
    swap       probability that a word changes places with the next
    replace    probability that a word with synonyms becomes one of them
    synonyms   a .jsonl of {"word": lower case, "synonyms": [...]}, as `python -m data_pipelines.synonyms` writes it from
               WordNet; null: none
    both       edit query and positive; false: the query is the text itself
    seed       of all draws
    The others are those of every `Source`.
    """

    def __init__(
        self,
        *,
        rows: Source,
        delete: float = 0.1,
        swap: float = 0.1,
        replace: float = 0.0,
        synonyms: str | None = None,
        both: bool = True,
        seed: int = 0,
        **common: Unpack[SourceSettings],
    ) -> None:
        super().__init__(**common)
        for name, value in (("delete", delete), ("swap", swap), ("replace", replace)):
            if not 0 <= value < 1:
                raise ConfigError(f"{name}={value}: expected a probability of 0 or more, below 1.")
        if not delete + swap + replace:
            raise ConfigError("delete, swap and replace are 0: nothing would be edited. For texts as they are: Texts.")
        if (replace > 0) != (synonyms is not None):
            raise ConfigError(f"replace={replace}, synonyms={synonyms}: expected both, or replace=0 and no synonyms.")
        if seed < 0:
            raise ConfigError(f"seed={seed}: expected 0 or more.")
        self.rows = rows
        self.delete = delete
        self.swap = swap
        self.replace = replace
        self.synonyms = None if synonyms is None else read_synonyms(Path(synonyms).expanduser())
        self.both = both
        self.seed = seed

    @property
    def where(self) -> str:
        return self.rows.where

    def _mapping(self) -> str:
        return f"positives <- the text, edited; query <- the text{', edited otherwise' if self.both else ''}"

    def _count(self) -> int:
        return len(self.rows)

    def _read(self, row: int) -> TrainingExample:
        return self._twice(self.rows[row], row)

    def _read_all(self) -> Iterator[TrainingExample]:
        return (self._twice(example, row) for row, example in enumerate(self.rows))

    def _twice(self, example: TrainingExample, row: int) -> TrainingExample:
        query, positive = (np.random.default_rng((self.seed, row, side)) for side in (0, 1))
        return TrainingExample(
            query=self._edited(example.query, query) if self.both else example.query,
            positives=(self._edited(example.query, positive),),
            instruction=example.instruction,
            row=example.row,
        )

    def _edited(self, text: str, rng: np.random.Generator) -> str:
        words = text.split()
        if not words:
            return text  # the check of every row names it
        if self.synonyms is not None:
            words = self._replaced(words, self.synonyms, rng)
        stays = rng.random(len(words)) >= self.delete
        stays[rng.integers(len(words))] = True
        words = [word for word, kept in zip(words, stays.tolist(), strict=True) if kept]
        swaps = rng.random(len(words) - 1) < self.swap
        for place in np.flatnonzero(swaps).tolist():
            words[place], words[place + 1] = words[place + 1], words[place]
        return " ".join(words)

    def _replaced(
        self, words: Sequence[str], synonyms: Mapping[str, Sequence[str]], rng: np.random.Generator
    ) -> list[str]:
        chosen, draws = rng.random(len(words)) < self.replace, rng.random(len(words))
        found = []
        for word, take, draw in zip(words, chosen.tolist(), draws.tolist(), strict=True):
            offered = synonyms.get(word.lower()) if take else None
            found.append(offered[int(draw * len(offered))] if offered else word)
        return found


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """By word. Raises DataError for a line that is not {"word": text, "synonyms": [texts]}."""
    lines = LinesFile(path)
    found: dict[str, list[str]] = {}
    for row in range(len(lines)):
        values: dict[str, Any] = lines.json(row)
        word, others = values.get("word"), values.get("synonyms")
        if not isinstance(word, str) or not isinstance(others, list) or not all(isinstance(o, str) for o in others):
            raise DataError(
                f'{path}, line {lines.number(row)}: expected {{"word": text, "synonyms": [texts]}}, got {str(values)[:80]!r}.'
            )
        found[word] = others
    return found
