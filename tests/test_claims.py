"""The program that looks at claims of papers: its configs, its arithmetic, and that its page is what it measured. No training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from benchmarks import claims, mining_quality, objectives
from benchmarks.claim_arms import ARMS, MEASURES, Stage, config_of, spearman_parts
from benchmarks.claims import CLAIMS, PAGE, TABLE, VERDICTS, Side, judge, table
from embedtrain.config.validate import validate

# One of those that differ in numbers alone.
STAGES = {(*stage.sources, *stage.overrides[:-1], stage.negatives): stage for arm in ARMS for stage in arm.stages}
BY_NAME = {arm.name: arm for arm in ARMS}
KNOWN = {
    "claims": {("", arm.name) for arm in ARMS},
    "objectives": {(case.task, case.name) for case in objectives.CASES},
    "mining_quality": {(task, name) for task, names in mining_quality.TRAINED.items() for name in names},
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: " ".join(stage.sources))
def test_a_stage_is_a_valid_config(stage: Stage, tmp_path: Path) -> None:
    for source in stage.sources:
        (tmp_path / f"{source}.jsonl").write_text("{}\n")
    config = config_of(stage, 1, tmp_path)
    validate(config, [])
    assert set(config["data"]["sources"]) == set(stage.sources)
    assert config["run"]["seed"] == 1


def test_arms_that_are_compared_make_the_same_number_of_steps() -> None:
    steps = {arm.name: sum(stage.steps for stage in arm.stages) for arm in ARMS if arm.stages}
    for claim in CLAIMS:
        own = {steps[arm] for side in (claim.above, claim.below) for arm in side.arms if arm in steps}
        assert len(own) <= 1, claim.text


def test_a_merge_comes_after_what_it_merges() -> None:
    before: set[str] = set()
    for arm in ARMS:
        assert before.issuperset(arm.merges)
        assert all(BY_NAME[name].is_kept for name in arm.merges)
        before.add(arm.name)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.paper.name} {claim.text}")
def test_a_claim_compares_what_some_program_measures(claim: claims.Claim) -> None:
    for side, measure in ((claim.above, claim.measure), (claim.below, claim.below_measure or claim.measure)):
        assert KNOWN[side.program].issuperset((side.task, arm) for arm in side.arms)
        if side.program == "claims":
            assert all(measure in (*BY_NAME[arm].measures, "mean") for arm in side.arms)
    assert set(BY_NAME["routed"].measures) <= set(MEASURES)


def test_a_claim_holds_only_where_seeds_and_queries_agree() -> None:
    low = {seed: [10.0 + q for q in range(40)] for seed in range(3)}
    high = {seed: [value + 2 + 0.1 * seed for value in values] for seed, values in low.items()}
    # One query in forty carries the whole difference, so other queries could turn it.
    lone = {seed: [*values[:-1], values[-1] + 80] for seed, values in low.items()}
    # One seed carries it.
    wild = {0: high[0], 1: low[1], 2: low[2]}
    assert judge(high, low, 0).says == "holds"
    assert judge(low, high, 0).says == "does not hold"
    assert judge(low, high, 3).says == "holds"
    assert judge(lone, low, 0).says == "undecided"
    assert judge(wild, low, 0).says == "undecided"
    assert judge({0: high[0]}, low, 0).says == "undecided"
    assert judge({}, low, 0).says == "not measured"


def test_intervals_are_those_of_the_paired_differences() -> None:
    verdict = judge({0: [3.0], 1: [5.0], 2: [4.0]}, {0: [1.0], 1: [2.0], 2: [3.0]}, 0)
    assert (verdict.above, verdict.below) == (4.0, 2.0)
    # Differences 2, 3, 1: mean 2, deviation 1, t(0.975, 2) = 4.3027.
    assert verdict.over_seeds == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert verdict.over_queries is None


def test_the_best_of_several_is_chosen_seed_by_seed_by_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [
        {"arm": arm, "seed": seed, "measured": {"faq": [faq, faq], "sts": [sts, sts]}}
        for arm, seed, faq, sts in [("a", 0, 1.0, 9.0), ("b", 0, 4.0, 4.0), ("a", 1, 1.0, 2.0), ("b", 1, 0.0, 9.0)]
    ]
    monkeypatch.setattr(claims, "cells_of", lambda program: cells)
    side = Side("claims", ("a", "b"))
    assert side.values("faq") == {0: [1.0, 1.0], 1: [0.0, 0.0]}
    assert side.values("mean") == {0: [5.0], 1: [4.5]}


def test_the_parts_of_a_correlation_have_it_as_their_mean() -> None:
    first, second = [0.1, 0.4, 0.4, 0.9, 0.3], [1.0, 2.0, 5.0, 5.0, 3.0]
    parts = spearman_parts(first, second)
    assert sum(parts) / len(parts) == pytest.approx(100 * spearmanr(first, second).statistic)


def test_table_and_page_are_those_of_the_verdicts() -> None:
    lines = table(json.loads(VERDICTS.read_text(encoding="utf-8")))
    assert TABLE.read_text(encoding="utf-8").splitlines() == lines
    assert "\n".join(lines) in PAGE.read_text(encoding="utf-8")
