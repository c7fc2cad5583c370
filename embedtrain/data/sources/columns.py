"""Columns to roles, by name and never by position.

A mapping names the column, or the columns, of each role:

    columns: {query: question, positives: answer, negatives: [neg_1, neg_2], scores: [pos_scores, neg_scores]}

Several columns of one role are put one after the other; a cell may hold one value or a list. Without a mapping the names
below are recognised. Where that leaves a doubt, the error lists the columns that are there and the mapping to write.

`label` is the class of the row, text or a number (which becomes its decimal text, 3 and 3.0 alike). Pairs that people graded
are rows with one document and its score:

    columns: {query: sentence1, positives: sentence2, scores: score}        score_range: [0, 5]

The document of a graded row has the place of a positive, and its score says how much of one it is. Losses for graded pairs
(losses/ranking, losses/distillation) read the score; a contrastive loss does not, and would pull a pair with score 0 together as
well. So graded sources have a loss of their own (loss=routed): then no contrastive loss sees their rows, and their documents are
known answers of none of its queries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample

ColumnNames = str | Sequence[str]

ROLES = ("query", "positives", "negatives", "scores", "instruction", "label")
_SINGLE = ("query", "instruction", "label")  # roles of one column
# Names that public data sets and other training programs use for the roles.
WELL_KNOWN: dict[str, tuple[str, ...]] = {
    "query": ("query", "question", "anchor", "sentence1"),
    "positives": ("positives", "positive", "pos", "answer", "response", "document", "passage", "sentence2"),
    "negatives": ("negatives", "negative", "neg", "hard_negatives"),
    "scores": ("scores",),
    "instruction": ("instruction", "prompt"),
}
_NUMBERED_NEGATIVE = re.compile(r"(?:hard_)?neg(?:ative)?_(\d+)")
_SIDE_SCORES = ("pos_scores", "neg_scores")
# A column that may say that a pair is *not* a positive, or only a little: to guess here would train on wrong pairs.
_LABELS = {"label": "label", "labels": "label", "score": "scores", "similarity": "scores"}  # to the role it may have


@dataclass(frozen=True)
class Columns:
    """The columns of each role. `unused` are there and are not read."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    instruction: str | None = None
    label: str | None = None
    unused: tuple[str, ...] = ()

    @classmethod
    def given(
        cls, columns: Mapping[str, ColumnNames | None], present: Sequence[str], where: str, *, partly: bool = False
    ) -> Columns:
        """From a mapping that the user wrote. `present` are the columns that there are; `partly`: in this row, which may
        leave out any but the query."""
        for role in columns:
            if role not in ROLES:
                raise ConfigError(f"columns.{role}: unknown role. Expected some of {', '.join(ROLES)}.")
        roles = {role: _listed(columns.get(role)) for role in ROLES}
        for role in ("query", "positives"):
            if not roles[role]:
                raise ConfigError(f"columns.{role} is not set. A mapping names at least query and positives.")
        for role in _SINGLE:
            if len(roles[role]) > 1:
                raise ConfigError(f"columns.{role}={list(roles[role])}: expected one column.")
        used = [name for names in roles.values() for name in names]
        missing = [name for name in (roles["query"] if partly else used) if name not in present]
        if missing:
            raise DataError(
                f"{where}: there is no column {', '.join(map(repr, missing))}. The columns are {_listing(present)}. "
                "Correct the names."
            )
        return cls._of(roles, used, present)

    @classmethod
    def recognised(cls, present: Sequence[str], where: str) -> Columns:
        """From well-known names. Raises DataError where a role is missing or two columns could have it."""
        roles = {role: tuple(name for name in names if name in present) for role, names in WELL_KNOWN.items()}
        numbered = {int(m[1]): name for name in present if (m := _NUMBERED_NEGATIVE.fullmatch(name))}
        if numbered and not roles["negatives"]:
            roles["negatives"] = tuple(numbered[number] for number in sorted(numbered))
        elif numbered:
            raise _doubt(f"both {roles['negatives'][0]!r} and numbered columns could be the negatives", present, where)
        elif len(roles["negatives"]) > 1:
            raise _doubt(f"{_listing(roles['negatives'])} could all be the negatives", present, where)
        sides = tuple(name for name in _SIDE_SCORES if name in present)
        if sides and roles["scores"]:
            raise _doubt(f"both 'scores' and {_listing(sides)} could be the scores", present, where)
        roles["scores"] = roles["scores"] or sides
        for role in ("query", "positives", "instruction"):
            if len(roles[role]) > 1:
                raise _doubt(f"{_listing(roles[role])} could all be the {role}", present, where)
            if not roles[role] and role != "instruction":
                raise _doubt(f"none is known to be the {role}", present, where)
        labels = [name for name in _LABELS if name in present]
        if labels:
            raise _doubt(
                f"{labels[0]!r} may say which pairs are positives: then keep only the rows that are. If it is "
                f"{'the class of the row' if _LABELS[labels[0]] == 'label' else 'the grade of the pair'}, it belongs into the "
                f"mapping as {_LABELS[labels[0]]}: {labels[0]}",
                present,
                where,
            )
        roles["label"] = ()
        return cls._of(roles, [name for names in roles.values() for name in names], present)

    @classmethod
    def _of(cls, roles: Mapping[str, tuple[str, ...]], used: Sequence[str], present: Sequence[str]) -> Columns:
        return cls(
            query=roles["query"][0],
            positives=roles["positives"],
            negatives=roles["negatives"],
            scores=roles["scores"],
            instruction=roles["instruction"][0] if roles["instruction"] else None,
            label=roles["label"][0] if roles["label"] else None,
            unused=tuple(name for name in present if name not in used),
        )

    @property
    def used(self) -> list[str]:
        single = [name for name in (self.instruction, self.label) if name is not None]
        return list(dict.fromkeys([self.query, *self.positives, *self.negatives, *self.scores, *single]))

    def describe(self) -> str:
        parts = [f"query <- {self.query}", f"positives <- {', '.join(self.positives)}"]
        parts += [f"{role} <- {', '.join(names)}" for role in ("negatives", "scores") if (names := getattr(self, role))]
        parts += [f"{role} <- {name}" for role in ("instruction", "label") if (name := getattr(self, role)) is not None]
        if self.unused:
            parts.append(f"not read: {', '.join(self.unused)}")
        return "; ".join(parts)

    def example(self, values: Mapping[str, Any], row: str) -> TrainingExample:
        """One row. Lists are flattened, null cells left out; the types are checked here, the rest by `index.check`."""
        query = values.get(self.query)
        if not isinstance(query, str):
            raise DataError(f"{row}: {self.query} is {_shown(query)}. Expected a text.")
        instruction = None if self.instruction is None else values.get(self.instruction)
        if not isinstance(instruction, str | None):
            raise DataError(f"{row}: {self.instruction} is {_shown(instruction)}. Expected a text or null.")
        scores = [_number(v, name, row) for name in self.scores for v in _cell(values.get(name))]
        return TrainingExample(
            query=query,
            positives=self._texts(self.positives, values, row),
            negatives=self._texts(self.negatives, values, row),
            scores=tuple(scores) if scores else None,
            instruction=instruction or None,
            label=None if self.label is None else _label(values.get(self.label), self.label, row),
            row=row,
        )

    @staticmethod
    def _texts(names: tuple[str, ...], values: Mapping[str, Any], row: str) -> tuple[str, ...]:
        texts: list[str] = []
        for name in names:
            for value in _cell(values.get(name)):
                if not isinstance(value, str):
                    raise DataError(f"{row}: {name} holds {_shown(value)}. Expected a text or a list of texts.")
                texts.append(value)
        return tuple(texts)


def _listed(names: ColumnNames | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def _cell(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _number(value: Any, name: str, row: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{row}: {name} holds {_shown(value)}. Expected a number or a list of numbers.")
    return float(value)


def _label(value: Any, name: str, row: str) -> str | None:
    """A class as text; null, NaN and an empty cell are none."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with gaps is read as 3.0
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{row}: {name} is {_shown(value)}. Expected the class of the row: a text or a number.")
    return str(value)


def _doubt(what: str, present: Sequence[str], where: str) -> DataError:
    return DataError(
        f"{where}: the columns are {_listing(present)}; {what}. Say which is which: "
        "columns={query: <column>, positives: <column>, negatives: [<columns>]}."
    )


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "(none)"


def _shown(value: object) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
