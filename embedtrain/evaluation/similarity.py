"""Semantic textual similarity: does the cosine of two texts rise with the likeness that people gave them?"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from embedtrain.errors import ConfigError, DataError
from embedtrain.evaluation.encoding import TextEncoder, encode_shares, prompts_used, read_context
from embedtrain.evaluation.files import numbered_lines, open_text
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.types import Role

COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilarityData:
    name: str
    first: list[str]
    second: list[str]
    scores: list[float]  # any scale, more is more alike


class SimilarityEvaluator:
    """Spearman (primary) and Pearson correlation of the cosine with people's scores: the same result on every rank.

    Args:
        path: .tsv, .csv or .jsonl, also with .gz behind, with the columns sentence1, sentence2 and score.
        role: whose prompt both texts get. Likeness is symmetric, so it is one for both.
        source: the training source whose prompts the texts get; null: the common prompts.
        instruction: the task, where the prompt has a place for it.
    """

    def __init__(
        self, *, path: str | Path, role: Role = "query", source: str | None = None, instruction: str | None = None
    ) -> None:
        self.data = read_similarity(path)
        self.role = role
        self.source = source
        self.instruction = instruction

    def __call__(self, encoder: TextEncoder, *, show_progress: bool = False) -> EvaluationResult:
        start = time.perf_counter()
        texts = list(dict.fromkeys(self.data.first + self.data.second))  # many texts stand in several pairs
        context = read_context(encoder, texts, self.source)
        embeddings = encode_shares(
            encoder,
            texts,
            role=self.role,
            source=self.source,
            instructions=[self.instruction] * len(texts),
            show_progress=show_progress,
        )
        if embeddings.offsets is not None:
            raise ConfigError(
                "evaluation.evaluators: similarity compares one vector per text, but this encoder gives several. Use retrieval "
                "(evaluation=beir or held_out), which knows MaxSim."
            )
        row = {text: i for i, text in enumerate(texts)}
        first = embeddings.values[[row[text] for text in self.data.first]]
        second = embeddings.values[[row[text] for text in self.data.second]]
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=1).numpy()
        return EvaluationResult(
            name=self.data.name,
            metrics={
                "spearman": _correlation(stats.spearmanr, cosine, self.data.scores),
                "pearson": _correlation(stats.pearsonr, cosine, self.data.scores),
            },
            primary="spearman",
            details={
                "num_pairs": len(self.data.scores),
                "seconds": round(time.perf_counter() - start, 3),
                f"{self.role}_prompt": prompts_used(encoder, self.source).get(f"{self.role}_prompt", ""),
                **context,
            },
        )


def _correlation(measure: Any, cosine: Any, scores: list[float]) -> float:
    """0 where all cosines are one and the same: a collapsed encoder orders nothing, and a mean must not become NaN."""
    return 0.0 if cosine.max() == cosine.min() else float(measure(cosine, scores).statistic)


def read_similarity(path: str | Path) -> SimilarityData:
    """Pairs with a score. Raises DataError, with file, line and column, for what is missing or malformed."""
    path = Path(path)
    data = SimilarityData(name=path.name.split(".")[0], first=[], second=[], scores=[])
    for row, where in _rows(path):
        for column in COLUMNS:
            if row.get(column) is None:
                raise DataError(
                    f"{where}: no value for {column!r}. Expected the columns {', '.join(COLUMNS)}; got {row}."
                )
        try:
            score = float(row["score"])
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise DataError(f"{where}: expected a number under 'score', got {row['score']!r}.")
        data.first.append(str(row["sentence1"]))
        data.second.append(str(row["sentence2"]))
        data.scores.append(score)
    if len(set(data.scores)) < 2:
        raise DataError(f"{path}: expected at least two different scores, got {len(data.scores)} pairs with one.")
    return data


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    format_ = path.name.removesuffix(".gz").rpartition(".")[2]
    if format_ == "jsonl":
        for line, where in numbered_lines(path):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: expected an object, got {line[:80]!r}")
            yield row, where
    elif format_ in ("tsv", "csv"):
        with open_text(path) as file:
            # A quotation mark in a .csv is syntax; in a .tsv it is a character like any other.
            reader = (
                csv.DictReader(file)
                if format_ == "csv"
                else csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            )
            for row in reader:
                yield row, f"{path}:{reader.line_num}"
    else:
        raise DataError(f"{path}: expected a .tsv, .csv or .jsonl file (or one of them with .gz behind).")
