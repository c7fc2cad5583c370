"""InfoNCE: pick the positive out of all negatives in the batch, on all ranks, by a softmax over similarities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.contrast import TERMS, Sums, contrast
from embedtrain.losses.formulas import FORMULAS, focal
from embedtrain.losses.modifiers import Modifier, bound
from embedtrain.losses.similarity import EMBEDDING, space_of
from embedtrain.losses.temperature import Temperature
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class InfoNCE(nn.Module):
    """Picks the positive of a query out of all negatives, by a softmax over similarities.

        mean over queries of  -log( e^(s+ / t) / (e^(s+ / t) + sum over negatives of e^(s / t)) )

    van den Oord et al. 2018 (arXiv:1807.03748); with other settings the losses of GTE, Qwen3, Jina, LLaVE, KaLM,
    EmbeddingGemma and others, whose formulas are in formulas.py. Which pairs are negatives is read from ids: a document that
    answers the query, brought by another row or twice, is none. SigmoidLoss asks of each pair by itself.
    Cost: three products per term, memory linear in the batch (contrast.py).

    temperature        divides the similarity
    learn_temperature  temperature is a parameter (log_scale = log(1 / temperature)), kept within 0.01 .. 1
    terms              what is contrasted, rows 2 columns: q2d (query against documents), d2q (each positive document
                       against queries), q2q and d2d (same kind)
    partition          joint: one denominator over all terms (GTE, Qwen3); separate: one cross-entropy per term,
                       averaged (CLIP's symmetric loss: terms [q2d, d2q])
    negatives          in_batch: all documents on all ranks; hard_only: the query's own hard negatives (for sources
                       whose documents repeat, such as labels)
    positives          of a query with several. each: mean over them, the others out of the denominator; summed: log
                       of the sum of them all, so that one good match is enough
    decoupled          the positive is left out of the denominator (arXiv:2110.06848)
    margin             taken off the similarity of the positive: it must win by that much (CosFace, arXiv:1801.09414)
    focal              gamma: a row counts (1 - p)^gamma, p the share of its positive (KaLM-Embedding V2: 0.5); 0: all alike
    views              null: the embedding; or name -> weight, similarities summed: {embedding: 1.0, sparse: 0.3}, where
                       `embedding` is the embedding itself (BGE-M3)
    query_tokens       of multi-vector embeddings: what the query's tokens find is summed (ColBERT) or averaged (BGE-M3)
    modifiers          filters and weights of negatives by name: components of losses/modifiers
    extra              further negatives by name: components of losses/extra
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
        decoupled: bool = False,
        margin: float = 0.0,
        focal: float = 0.0,
        views: Mapping[str, float] | None = None,
        query_tokens: Literal["sum", "mean"] = "sum",
        modifiers: Mapping[str, Modifier | None] | None = None,
        extra: Mapping[str, Callable[[EmbeddingBatch], EmbeddingBatch] | None] | None = None,
    ):
        super().__init__()
        if not terms or len(set(terms)) < len(terms) or not set(terms) <= set(TERMS):
            raise ConfigError(f"loss.terms: expected distinct names out of {', '.join(TERMS)}, got {list(terms)}.")
        one_of("partition", partition, ("joint", "separate"))
        one_of("negatives", negatives, ("in_batch", "hard_only"))
        one_of("positives", positives, ("each", "summed"))
        one_of("query_tokens", query_tokens, ("sum", "mean"))
        if negatives == "hard_only" and tuple(terms) != ("q2d",):
            raise ConfigError(
                f"loss.negatives: hard_only leaves nothing to contrast in terms {list(terms)}, whose negatives are all "
                "in-batch. Use terms: [q2d], or negatives: in_batch."
            )
        if focal < 0:
            raise ConfigError(f"loss.focal: {focal} would favour rows that are solved. Use a number >= 0.")
        self.temperature = Temperature(temperature, learned=learn_temperature)
        self.terms = tuple(terms)
        self.hard_only = negatives == "hard_only"
        self.formula = row_formula(positives, partition, decoupled=decoupled, gamma=focal)
        self.margin = margin
        self.views = dict(views or {})
        self.query_tokens: Literal["sum", "mean"] = query_tokens
        self.modifiers = {name: modifier for name, modifier in (modifiers or {}).items() if modifier is not None}
        chosen = {name: more for name, more in (extra or {}).items() if more is not None}
        if chosen and self.views:
            raise ConfigError(
                f"loss.extra: {', '.join(chosen)} add to the embedding itself, and loss.views compares others. Use one of them."
            )
        self.extra = chosen
        self.memories = nn.ModuleList(more for more in chosen.values() if isinstance(more, nn.Module))

    @property
    def needs(self) -> Needs:
        needs = Needs(views=tuple(name for name in self.views if name != EMBEDDING))
        for modifier in self.modifiers.values():
            needs |= getattr(modifier, "needs", Needs())
        return needs

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        asked = batch
        for more in self.extra.values():
            batch = more(batch)
        modifiers = bound(self.modifiers.values(), batch)
        sums = contrast(
            batch,
            scale=self.temperature.scale(batch.queries.values),
            terms=self.terms,
            formula=self.formula,
            space=space_of(batch, self.views, self.query_tokens),
            modifiers=modifiers,
            hard_only=self.hard_only,
            margin=self.margin,
        )
        share = 1 / batch.relation.num_queries
        metrics = self._metrics(sums, batch) | {"extra_negatives": sums.loss.new_tensor(added(asked, batch))}
        if not self.extra:
            del metrics["extra_negatives"]
        return LossOutput(sums.loss * share, {name: value * share for name, value in metrics.items()})

    def _metrics(self, sums: Sums, batch: EmbeddingBatch) -> dict[str, Tensor]:
        """Per query, summed over this rank's queries."""
        metrics = contrast_metrics(sums)
        if any(modifier.turn == "filter" for modifier in self.modifiers.values()):
            metrics["filtered_per_query"] = sums.filtered
        if self.temperature.log_scale is not None:
            metrics["temperature"] = batch.num_rows / self.temperature.log_scale.detach().exp()
        return metrics


def added(before: EmbeddingBatch, after: EmbeddingBatch) -> int:
    """Documents that `extra` put into the batch, once for each of this rank's queries."""
    return (after.relation.num_documents - before.relation.num_documents) * after.num_rows


def contrast_metrics(sums: Sums) -> dict[str, Tensor]:
    """What every contrastive loss reports, per query, summed over this rank's queries."""
    return {
        "accuracy": sums.accuracy,
        "positive_similarity": sums.positive_similarity,
        "hardest_negative_similarity": sums.hardest_negative_similarity,
        "ignored_per_query": sums.ignored,
    }


def row_formula(positives: str, partition: str, *, decoupled: bool, gamma: float):
    formula = partial(FORMULAS[positives, partition], inside=not decoupled)
    return focal(formula, gamma) if gamma else formula


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError where `value` is none of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"loss.{key}: expected {' or '.join(allowed)}, got {value!r}.")
