"""Is the difference real? The paired bootstrap over queries.

The same queries were answered before and after, so what counts is each query's own difference d_q. Queries are drawn with
replacement, as many as there are, and the mean difference is taken again, many times; the middle 95 % of these means is the
interval (percentile bootstrap; Efron & Tibshirani 1993, chapter 13; for retrieval: Sakai 2006, Smucker et al. 2007). It says how
much the figure would move with other queries of the same kind. It says nothing of other seeds or other data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from embedtrain.evaluation.result import EvaluationResult

DRAWS_AT_ONCE = 4_000_000  # numbers in memory: 32 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A metric before and after. Without values of the same queries there is no interval, and what follows it is None."""

    metric: str
    before: float
    after: float
    low: float | None = None  # of the 95 % interval of after - before
    high: float | None = None
    p_value: float | None = None  # two-sided: how often a drawn mean falls on the other side of zero
    better: float | None = None  # share of queries with a higher value than before
    worse: float | None = None
    num_queries: int | None = None

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def compare(
    before: EvaluationResult, after: EvaluationResult, *, resamples: int = 2000, seed: int = 0
) -> list[Difference]:
    """Every metric that both results have, in the order of `after`; without an interval where the queries are not the same."""
    differences = []
    for metric, value in after.metrics.items():
        if metric not in before.metrics:
            continue
        old, new = (result.per_query or {} for result in (before, after))
        if metric in old and metric in new and old[metric].keys() == new[metric].keys():
            differences.append(paired_bootstrap(metric, old[metric], new[metric], resamples=resamples, seed=seed))
        else:
            differences.append(Difference(metric=metric, before=before.metrics[metric], after=value))
    return differences


def paired_bootstrap(
    metric: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The difference of a mean over queries. Both sides must hold the same queries; the seed fixes the draws."""
    assert before.keys() == after.keys(), f"{metric}: the two sides were measured on different queries"
    old = np.array([before[query] for query in before])
    new = np.array([after[query] for query in before])
    change = new - old
    means = _resampled_means(change, resamples, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    # One is added on both sides of the fraction, so that no finite number of draws can claim p = 0.
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(
        metric=metric,
        before=float(old.mean()),
        after=float(new.mean()),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * (1 + int(beyond)) / (1 + resamples)),
        better=float((change > 0).mean()),
        worse=float((change < 0).mean()),
        num_queries=len(change),
    )


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[resamples] means of n values drawn from n with replacement."""
    generator = np.random.default_rng(seed)
    n = len(values)
    at_once = max(1, DRAWS_AT_ONCE // n)
    means = [
        values[generator.integers(0, n, size=(min(at_once, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, at_once)
    ]
    return np.concatenate(means)
