import random

import numpy as np
import pytest

from embedtrain.evaluation.result import EvaluationResult
from embedtrain.evaluation.statistics import compare, paired_bootstrap


def scores(values):
    return {f"q{i}": float(value) for i, value in enumerate(values)}


def slow_interval(before, after, resamples, seed):
    """The definition, one draw at a time."""
    generator = random.Random(seed)
    change = [a - b for b, a in zip(before, after, strict=True)]
    means = sorted(sum(generator.choices(change, k=len(change))) / len(change) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_interval_is_that_of_a_slow_loop():
    generator = np.random.default_rng(0)
    before, after = generator.random(80), generator.random(80) * 1.2
    difference = paired_bootstrap("ndcg@10", scores(before), scores(after), resamples=20_000)
    low, high = slow_interval(before, after, 5_000, seed=1)
    width = high - low
    assert difference.low == pytest.approx(low, abs=0.04 * width)
    assert difference.high == pytest.approx(high, abs=0.04 * width)
    assert difference.change == pytest.approx((after - before).mean())


def test_interval_covers_the_truth_about_95_times_in_100():
    """Skewed differences with many zeros, as ranking metrics have."""
    generator = np.random.default_rng(0)
    trials, covered = 400, 0
    for trial in range(trials):
        change = generator.choice([0.0, 0.0, 0.0, 1.0, 0.37, -0.5], size=150)
        difference = paired_bootstrap("m", scores(np.zeros(150)), scores(change), resamples=500, seed=trial)
        covered += difference.low <= 0.87 / 6 <= difference.high
    assert 0.92 <= covered / trials <= 0.98  # about 2.5 standard errors


def test_p_value_is_uniform_where_nothing_changed():
    generator = np.random.default_rng(1)
    p_values = []
    for trial in range(300):
        change = generator.normal(size=100)
        p_values.append(paired_bootstrap("m", scores(np.zeros(100)), scores(change), resamples=500, seed=trial).p_value)
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09
    assert 0.4 <= np.mean(p_values) <= 0.6


def test_queries_are_paired_by_id_not_by_order():
    before, after = scores([0.1, 0.9, 0.5]), {"q2": 0.5, "q1": 0.9, "q0": 0.1}
    difference = paired_bootstrap("m", before, after)
    assert (difference.low, difference.high, difference.better, difference.worse) == (0, 0, 0, 0)
    assert difference.p_value == 1.0
    assert not difference.is_clear


def test_shares_count_queries():
    difference = paired_bootstrap("m", scores([0, 0, 0, 1]), scores([1, 1, 0, 0]))
    assert (difference.better, difference.worse, difference.num_queries) == (0.5, 0.25, 4)


def test_steady_gain_is_clear_and_p_never_zero():
    difference = paired_bootstrap("m", scores(np.zeros(50)), scores(np.full(50, 0.1)), resamples=999)
    assert difference.is_clear
    assert difference.p_value == pytest.approx(2 / 1000)


def test_same_seed_same_interval():
    before, after = scores(np.random.default_rng(0).random(30)), scores(np.random.default_rng(1).random(30))
    assert paired_bootstrap("m", before, after, seed=3) == paired_bootstrap("m", before, after, seed=3)
    assert paired_bootstrap("m", before, after, seed=3) != paired_bootstrap("m", before, after, seed=4)


def test_many_queries_are_drawn_in_blocks(monkeypatch):
    before, after = scores(np.random.default_rng(0).random(30)), scores(np.random.default_rng(1).random(30))
    whole = paired_bootstrap("m", before, after, resamples=101)
    monkeypatch.setattr("embedtrain.evaluation.statistics.DRAWS_AT_ONCE", 100)
    assert paired_bootstrap("m", before, after, resamples=101) == whole


def test_different_queries_are_a_broken_promise():
    with pytest.raises(AssertionError, match="different queries"):
        paired_bootstrap("m", scores([1, 2]), scores([1]))


def test_metrics_without_values_per_query_have_no_interval():
    before = EvaluationResult(name="sts", metrics={"spearman": 0.5, "old": 1.0}, primary="spearman")
    after = EvaluationResult(name="sts", metrics={"spearman": 0.75, "new": 1.0}, primary="spearman")
    (difference,) = compare(before, after)
    assert (difference.metric, difference.change, difference.low, difference.is_clear) == (
        "spearman",
        0.25,
        None,
        False,
    )


def test_other_queries_leave_a_change_without_an_interval():
    before, after = (
        EvaluationResult(name="a", metrics={"m": 0.5}, primary="m", per_query={"m": {query: 0.5}}) for query in "xy"
    )
    assert compare(before, after)[0].low is None
