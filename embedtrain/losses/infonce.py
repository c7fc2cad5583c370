"""InfoNCE: pick the positive out of all negatives in the batch, on all ranks, by a softmax over similarities."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import TERMS, Sums, TileModifier, contrast
from embedtrain.losses.formulas import FORMULAS
from embedtrain.losses.modifiers import FalseNegativeFilter, HardnessWeight
from embedtrain.types import EmbeddingBatch, LossOutput

# CLIP (arXiv:2103.00020, section 2.5) keeps 1 / temperature at most 100; above 1 a softmax over cosines is nearly flat.
LEARNED_TEMPERATURE = (0.01, 1.0)


class InfoNCE(nn.Module):
    """-log of the share of the positive in  e^(s+ / t) + sum over negatives of e^(s / t),  averaged over all queries.

    van den Oord et al. 2018 (arXiv:1807.03748); with other settings the losses of GTE, Qwen3, Jina, LLaVE,
    EmbeddingGemma and others. Which pairs are negatives, and which are left out, is the batch's `Relation`; exact
    formulas are in formulas.py. Cost: three matrix products per term, memory linear in the batch (contrast.py).

    temperature            divides the similarity
    learn_temperature      temperature is a parameter (log_scale = log(1 / temperature)), kept within 0.01 .. 1
    terms                  what is contrasted, rows 2 columns: q2d (query against documents), d2q (each positive document
                           against queries), q2q and d2d (same kind)
    partition              joint: one denominator over all terms (GTE, Qwen3); separate: one cross-entropy per term,
                           averaged (CLIP's symmetric loss: terms [q2d, d2q])
    negatives              in_batch: all documents on all ranks; hard_only: the query's own hard negatives (for sources
                           whose documents repeat, such as labels)
    positives              of a query with several. each: mean over them, the others out of the denominator; summed: log
                           of the sum of them all, so that one good match is enough
    hardness               null, or {alpha, negatives: all | hard}: see HardnessWeight
    false_negative_margin  null, or {absolute | relative, curated}: see FalseNegativeFilter
    """

    def __init__(
        self,
        *,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        terms: Sequence[str] = ("q2d",),
        partition: Literal["joint", "separate"] = "joint",
        negatives: Literal["in_batch", "hard_only"] = "in_batch",
        positives: Literal["each", "summed"] = "each",
        hardness: Mapping[str, Any] | None = None,
        false_negative_margin: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"loss.temperature: expected a number above 0, got {temperature}. Common: 0.01 to 0.1.")
        if not terms or len(set(terms)) < len(terms) or not set(terms) <= set(TERMS):
            raise ConfigError(f"loss.terms: expected distinct names out of {', '.join(TERMS)}, got {list(terms)}.")
        _one_of("partition", partition, ("joint", "separate"))
        _one_of("negatives", negatives, ("in_batch", "hard_only"))
        _one_of("positives", positives, ("each", "summed"))
        if negatives == "hard_only" and tuple(terms) != ("q2d",):
            raise ConfigError(
                f"loss.negatives: hard_only leaves nothing to contrast in terms {list(terms)}, whose negatives are all "
                "in-batch. Use terms: [q2d], or negatives: in_batch."
            )
        low, high = LEARNED_TEMPERATURE
        if learn_temperature and not low <= temperature <= high:
            raise ConfigError(
                f"loss.temperature: a learned temperature stays within {low} to {high}, got {temperature} to start from. "
                "Start inside, or use learn_temperature: false."
            )
        self.temperature = temperature  # to start from, where it is learned
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature))) if learn_temperature else None
        self.terms = tuple(terms)
        self.hard_only = negatives == "hard_only"
        self.formula = FORMULAS[positives, partition]
        self.modifiers: list[TileModifier] = []
        if false_negative_margin is not None:
            self.modifiers.append(_modifier(FalseNegativeFilter, "false_negative_margin", false_negative_margin))
        if hardness is not None:
            self.modifiers.append(_modifier(HardnessWeight, "hardness", hardness))

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        sums = contrast(
            batch,
            scale=self._scale(batch.queries.values),
            terms=self.terms,
            formula=self.formula,
            modifiers=self.modifiers,
            hard_only=self.hard_only,
        )
        share = 1 / batch.relation.num_queries
        return LossOutput(
            sums.loss * share, {name: value * share for name, value in self._metrics(sums, batch).items()}
        )

    def _scale(self, like: Tensor) -> Tensor:
        """1 / temperature, fp32, or fp64 for fp64 embeddings."""
        if self.log_scale is None:
            kind = like.dtype if like.dtype == torch.float64 else torch.float32
            return torch.tensor(1 / self.temperature, dtype=kind, device=like.device)
        low, high = LEARNED_TEMPERATURE
        with torch.no_grad():  # brought back into its range, so that a later gradient can still move it
            self.log_scale.clamp_(-math.log(high), -math.log(low))
        return self.log_scale.exp()

    def _metrics(self, sums: Sums, batch: EmbeddingBatch) -> dict[str, Tensor]:
        """Per query, summed over this rank's queries."""
        metrics = {
            "accuracy": sums.accuracy,
            "positive_similarity": sums.positive_similarity,
            "hardest_negative_similarity": sums.hardest_negative_similarity,
            "ignored_per_query": sums.ignored,
        }
        if any(isinstance(modifier, FalseNegativeFilter) for modifier in self.modifiers):
            metrics["filtered_per_query"] = sums.filtered
        if self.log_scale is not None:
            start, stop, _ = batch.rows.indices(batch.relation.num_queries)
            metrics["temperature"] = (stop - start) / self.log_scale.detach().exp()
        return metrics


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"loss.{key}: expected {' or '.join(allowed)}, got {value!r}.")


def _modifier(kind: Callable[..., TileModifier], key: str, settings: Mapping[str, Any]) -> TileModifier:
    takes = inspect.signature(kind).parameters
    for name in settings:
        if name not in takes:
            raise ConfigError(f"loss.{key}.{name}: no such setting. It takes: {', '.join(takes)}.")
    for name, parameter in takes.items():
        if parameter.default is parameter.empty and name not in settings:
            raise ConfigError(f"loss.{key}: needs {name}, got {dict(settings)}.")
    return kind(**settings)
