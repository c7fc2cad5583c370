"""What an evaluation found: figures, the figure that counts, and enough per query to say later what changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embedtrain.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryExample:
    """One query as a person would look at it. Texts are cut to a few lines."""

    query: str
    relevant: str  # the judged document that was ranked best
    found: str  # the document ranked first, relevant or not
    rank: int | None  # of the first relevant document, from 1; None: below the depth of the search


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """One evaluator's answer. Figures are fractions (0.645, not 64.5) and the same on every rank."""

    name: str  # of the evaluator in the config
    metrics: dict[str, float]
    primary: str  # the key of `metrics` that counts
    per_query: dict[str, dict[str, float]] | None = None  # metric -> query id -> value
    examples: dict[str, QueryExample] = field(default_factory=dict)  # query id -> texts
    details: dict[str, Any] = field(default_factory=dict)  # sizes, seconds, prompts: what a reader must know to compare

    @property
    def score(self) -> float:
        return self.metrics[self.primary]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> EvaluationResult:
        fields = dict(tree)
        fields["examples"] = {query: QueryExample(**e) for query, e in fields.get("examples", {}).items()}
        return cls(**fields)


def write_results(path: str | Path, results: Mapping[str, EvaluationResult]) -> None:
    """Results by name as one JSON file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    tree = {name: result.to_json() for name, result in results.items()}
    unfinished.write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_results(path: str | Path) -> dict[str, EvaluationResult]:
    """What `write_results` wrote. Raises DataError for a file that holds anything else."""
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: EvaluationResult.from_json(result) for name, result in tree.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected evaluation results as JSON, cannot read them: {error}") from error
