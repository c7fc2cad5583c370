"""Every method against the loop over single weights that its formula is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.merging.methods.base import TensorMethod
from embedtrain.merging.methods.dare import DareLinear, DareTies, dropped
from embedtrain.merging.methods.delta_guided import DeltaGuided
from embedtrain.merging.methods.fisher import Fisher
from embedtrain.merging.methods.linear import Linear
from embedtrain.merging.methods.regmean import RegMean
from embedtrain.merging.methods.slerp import Slerp
from embedtrain.merging.methods.task_arithmetic import TaskArithmetic
from embedtrain.merging.methods.ties import Ties, trim
from embedtrain.merging.states import merge_states

WEIGHTS = [0.5, 2.0, 1.5]
seeds = st.integers(0, 2**31)
few = settings(max_examples=25, deadline=None)


def draw(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def by_entry(formula, models: Sequence[Tensor], base: Tensor) -> Tensor:
    """`formula(values of the models, value of the base)` for every single weight."""
    flat = [model.flatten().tolist() for model in models]
    values = [formula([one[i] for one in flat], b) for i, b in enumerate(base.flatten().tolist())]
    return torch.tensor(values).view_as(base)


def test_linear_is_the_weighted_mean() -> None:
    *models, base = draw(4, 3, 5)
    expected = by_entry(lambda t, _: sum(w * x for w, x in zip(WEIGHTS, t, strict=True)) / sum(WEIGHTS), models, base)
    torch.testing.assert_close(Linear(weight=WEIGHTS)("w", models), expected)
    torch.testing.assert_close(Linear(weight=WEIGHTS, normalize=False)("w", models), expected * sum(WEIGHTS))


def test_task_arithmetic_adds_what_was_learned() -> None:
    *models, base = draw(4, 3, 5)
    weights = [0.5, -2.0, 1.0]
    expected = by_entry(lambda t, b: b + 0.7 * sum(w * (x - b) for w, x in zip(weights, t, strict=True)), models, base)
    torch.testing.assert_close(TaskArithmetic(weight=weights, lambda_=0.7)("w", models, base), expected)


def test_slerp_is_the_point_on_the_arc() -> None:
    first, second = draw(2, 4, 6)
    a, b = first.flatten().tolist(), second.flatten().tolist()
    cos = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    alpha = math.acos(cos)
    one, two = math.sin(0.7 * alpha) / math.sin(alpha), math.sin(0.3 * alpha) / math.sin(alpha)
    expected = torch.tensor([one * x + two * y for x, y in zip(a, b, strict=True)]).view(4, 6)
    torch.testing.assert_close(Slerp(t=0.3)("w", [first, second]), expected)


def test_slerp_of_several_turns_towards_each_in_turn() -> None:
    first, second, third = draw(3, 4, 6)
    half = Slerp(t=0.5)("w", [first, second])
    torch.testing.assert_close(Slerp()("w", [first, second, third]), Slerp(t=1 / 3)("w", [half, third]))
    weighted = Slerp(t=2 / 2.5)("w", [first, second])
    torch.testing.assert_close(
        Slerp(weight=WEIGHTS)("w", [first, second, third]), Slerp(t=1.5 / 4)("w", [weighted, third])
    )


def test_slerp_of_parallel_and_of_opposite_tensors_is_the_straight_line() -> None:
    (first,) = draw(1, 10)
    for second in (first * 3, first * -2, first * 0):
        torch.testing.assert_close(Slerp(t=0.25)("w", [first, second]), 0.75 * first + 0.25 * second)


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    *models, base = draw(4, 3, 5)
    density, scale = [0.4, 0.6, 1.0], 1.3
    trimmed = []
    for model, kept in zip(models, density, strict=True):
        learned = (model - base).flatten().tolist()
        largest = sorted(range(15), key=lambda i, v=learned: -abs(v[i]))[: int(kept * 15)]
        trimmed.append([value if i in largest else 0.0 for i, value in enumerate(learned)])
    expected = []
    for i, start in enumerate(base.flatten().tolist()):
        votes = [w * one[i] for w, one in zip(WEIGHTS, trimmed, strict=True)]
        sign = 1 if sum(votes) >= 0 else -1
        agree = [(w, v) for w, v in zip(WEIGHTS, votes, strict=True) if v * sign > 0]
        mean = sum(v for _, v in agree) / sum(w for w, _ in agree) if agree else 0.0
        expected.append(start + scale * mean)
    method = Ties(weight=WEIGHTS, density=density, lambda_=scale)
    torch.testing.assert_close(method("w", models, base), torch.tensor(expected).view(3, 5))


def test_delta_guided_weighs_every_entry_by_how_far_it_moved() -> None:
    *models, base = draw(4, 3, 5)
    for model in models:
        model[0] = base[0]  # what no model moved

    def formula(values: list[float], start: float) -> float:
        deltas = [value - start for value in values]
        total = sum(w * abs(d) for w, d in zip(WEIGHTS, deltas, strict=True))
        return start + sum(w * abs(d) / total * d for w, d in zip(WEIGHTS, deltas, strict=True)) if total else start

    torch.testing.assert_close(DeltaGuided(weight=WEIGHTS)("w", models, base), by_entry(formula, models, base))


def test_fisher_weighs_every_entry_by_its_fisher_information() -> None:
    models = draw(3, 3, 5)
    fishers = [draw(1, 3, 5, seed=9 + i)[0].square() * 1e-22 for i in range(3)]  # as small as squared gradients are
    for fisher in fishers:
        fisher[1] = 0  # no model depends on these: their weighted mean
    merged = Fisher(weight=WEIGHTS).of([{"w": fisher} for fisher in fishers])("w", models)
    total = sum(w * f.double() for w, f in zip(WEIGHTS, fishers, strict=True))
    expected = sum(w * f.double() * m for w, f, m in zip(WEIGHTS, fishers, models, strict=True)) / total
    expected[1] = (sum(w * m for w, m in zip(WEIGHTS, models, strict=True)) / sum(WEIGHTS))[1]
    torch.testing.assert_close(merged, expected.float(), rtol=1e-4, atol=1e-5)


def test_regmean_solves_the_regression_of_all_outputs_on_all_inputs() -> None:
    """Least squares on the stacked inputs of all models, where each asks for its own layer's outputs."""
    layers = draw(3, 4, 6)
    inputs = draw(3, 50, 6, seed=1)
    merged = RegMean(reduction=1.0).of([{"w": x.T @ x} for x in inputs])("w", layers)
    wanted = torch.cat([x @ w.T for x, w in zip(inputs, layers, strict=True)])
    solution = np.linalg.lstsq(torch.cat(inputs).double().numpy(), wanted.double().numpy(), rcond=None)[0].T
    torch.testing.assert_close(merged.double(), torch.from_numpy(solution), rtol=1e-4, atol=1e-4)


def test_regmean_leaves_what_no_input_reads_at_the_mean() -> None:
    layers = draw(2, 4, 6)
    inputs = draw(2, 50, 6, seed=1)
    for x in inputs:
        x[:, 2] = 0
    merged = RegMean().of([{"w": x.T @ x} for x in inputs])("w", layers)
    torch.testing.assert_close(merged[:, 2], (layers[0] + layers[1])[:, 2] / 2, rtol=1e-3, atol=1e-3)
    statistics = [{"w": x.T @ x} for x in inputs]
    torch.testing.assert_close(RegMean().of(statistics)("bias", layers), (layers[0] + layers[1]) / 2)


def test_regmean_multiplies_the_inputs_off_the_diagonal() -> None:
    layers, inputs = draw(2, 4, 6), draw(2, 50, 6, seed=1)
    grams = [x.T @ x for x in inputs]
    shrunk = [gram * (0.5 + 0.5 * torch.eye(6)) for gram in grams]
    torch.testing.assert_close(
        RegMean(reduction=0.5).of([{"w": gram} for gram in grams])("w", layers),
        RegMean(reduction=1.0).of([{"w": gram} for gram in shrunk])("w", layers),
    )


# ------------------------------------------------------------------------------------------------------- identities

ALL: list[TensorMethod] = [
    Linear(),
    Linear(weight=WEIGHTS),
    Slerp(),
    Slerp(weight=WEIGHTS),
    TaskArithmetic(weight=WEIGHTS, normalize=True),
    Ties(density=1.0),
    Ties(weight=WEIGHTS, density=1.0),
    DareLinear(density=1.0, normalize=True),
    DareTies(density=1.0, normalize=True),
    DeltaGuided(),
    Fisher(weight=WEIGHTS).of([{"w": torch.ones(4, 3)}] * 3),
    RegMean().of([{"w": torch.eye(3) + 0.1}] * 3),
]


@pytest.mark.parametrize("method", ALL, ids=lambda method: type(method).__name__)
@given(seed=seeds)
@few
def test_equal_models_merge_into_themselves(method: TensorMethod, seed: int) -> None:
    model, base = draw(2, 4, 3, seed=seed)
    torch.testing.assert_close(method("w", [model, model, model], base), model, rtol=1e-4, atol=1e-5)


@given(seed=seeds)
@few
def test_a_weight_of_one_among_zeros_gives_that_model(seed: int) -> None:
    *models, base = draw(4, 4, 3, seed=seed)
    first = [1.0, 0.0, 0.0]
    for method in (
        Linear(weight=first),
        Slerp(weight=first),
        Ties(weight=first, density=1.0),
        DeltaGuided(weight=first),
    ):
        torch.testing.assert_close(method("w", models, base), models[0], rtol=1e-4, atol=1e-5)
    for t, expected in ((0.0, models[0]), (1.0, models[1])):
        torch.testing.assert_close(Slerp(t=t)("w", models[:2]), expected)


@given(seed=seeds, t=st.floats(0, 1))
@few
def test_slerp_keeps_a_length_that_both_ends_have(seed: int, t: float) -> None:
    first, second = (model / model.norm() for model in draw(2, 30, seed=seed))
    assert float(Slerp(t=t)("w", [first, second]).norm()) == pytest.approx(1.0, abs=1e-5)


@given(seed=seeds)
@few
def test_ties_without_trimming_and_without_conflict_is_the_mean(seed: int) -> None:
    *learned, base = draw(4, 4, 3, seed=seed)
    sign = learned[0].sign()
    models = [base + one.abs() * sign for one in learned]
    torch.testing.assert_close(Ties(density=1.0)("w", models, base), sum(models) / 3, rtol=1e-4, atol=1e-5)


@given(seed=seeds, density=st.floats(0.01, 1))
@few
def test_trimming_keeps_the_largest(seed: int, density: float) -> None:
    (values,) = draw(1, 40, seed=seed)
    kept = trim(values, density)
    assert int((kept != 0).sum()) == max(1, int(density * 40))
    assert float(kept.abs().max()) == float(values.abs().max())
    assert kept.abs()[kept != 0].min() >= values.abs()[kept == 0].max() if density < 0.99 else True


def test_dare_keeps_the_expectation_and_the_share() -> None:
    learned = torch.full((200_000,), 2.0)
    (kept,) = dropped([learned], [0.25], 0, "w")
    assert set(kept.unique().tolist()) == {0.0, 8.0}
    assert float((kept != 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(kept.mean()) == pytest.approx(2.0, abs=0.04)


def test_dare_drops_by_seed_model_and_name() -> None:
    ones = torch.ones(1000)
    drawn = [dropped([ones, ones], [0.5, 0.5], seed, name) for seed, name in ((0, "w"), (0, "w"), (1, "w"), (0, "v"))]
    assert torch.equal(drawn[0][0], drawn[1][0])
    for other in (drawn[0][1], drawn[2][0], drawn[3][0]):
        assert not torch.equal(drawn[0][0], other)


def test_dare_is_task_arithmetic_or_ties_of_what_was_kept() -> None:
    *models, base = draw(4, 30, 20)
    kept = dropped([model - base for model in models], [0.3] * 3, 5, "w")
    as_models = [base + one for one in kept]
    torch.testing.assert_close(
        DareLinear(weight=WEIGHTS, density=0.3, seed=5, lambda_=0.5)("w", models, base),
        TaskArithmetic(weight=WEIGHTS, lambda_=0.5)("w", as_models, base),
        rtol=1e-4,
        atol=1e-5,
    )
    for normalize in (True, False):
        torch.testing.assert_close(
            DareTies(weight=WEIGHTS, density=0.3, seed=5, normalize=normalize)("w", models, base),
            Ties(weight=WEIGHTS, density=1.0, normalize=normalize)("w", as_models, base),
            rtol=1e-4,
            atol=1e-5,
        )


# ----------------------------------------------------------------------------------------------------------- states


def test_half_precision_is_merged_in_fp32() -> None:
    models = [{"w": torch.tensor([1.0, 256.0]).bfloat16()}, {"w": torch.tensor([1.0 + 2**-7, 257.5]).bfloat16()}]
    ((_, merged),) = merge_states(Linear(), models)
    assert merged.dtype == torch.float32
    assert merged.tolist() == [1.0 + 2**-8, 257.0]


def test_whole_numbers_are_kept_where_they_agree_and_refused_where_not() -> None:
    same = {"ids": torch.arange(3)}
    ((_, merged),) = merge_states(Linear(), [same, same])
    assert torch.equal(merged, torch.arange(3))
    with pytest.raises(ConfigError, match=r"ids \(torch.int64\) is not the same in the first model and in model 3"):
        list(merge_states(Linear(), [same, same, {"ids": torch.arange(1, 4)}]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Linear(weight=[1.0])("w", draw(2, 3)),
            r"weight: expected one number, or one for each of the 2 models",
        ),
        (lambda: Linear(weight=[1.0, -1.0])("w", draw(2, 3)), r"weight: \[1.0, -1.0\] add up to 0"),
        (lambda: Slerp(t=0.5)("w", draw(3, 3)), r"t: is for two models, got 3"),
        (lambda: Slerp(weight=[0.0, 1.0])("w", draw(2, 3)), r"weight: slerp takes weights of 0 or more"),
        (lambda: Ties(density=0.0), r"density: expected a share above 0 and at most 1, got 0"),
        (lambda: DareLinear(density=[0.5, 1.5]), r"density: expected a share above 0 and at most 1, got 1.5"),
        (lambda: RegMean(reduction=2.0), r"reduction: expected a factor of 0 to 1"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "method", "parameters"),
    [
        ("linear", Linear(weight=WEIGHTS), {"weight": True}),
        ("task_arithmetic", TaskArithmetic(weight=WEIGHTS, lambda_=0.7), {"weight": True, "lambda": 0.7}),
        ("ties", Ties(weight=WEIGHTS, density=0.4), {"weight": True, "density": 0.4}),
        ("ties", Ties(weight=WEIGHTS, normalize=False), {"weight": True, "density": 0.2, "normalize": False}),
    ],
)
def test_mergekit_says_the_same(name: str, method: TensorMethod, parameters: dict) -> None:
    mergekit = pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed")
    *models, base = ({"w": tensor} for tensor in draw(4, 30, 20))
    inputs = {str(number): model for number, model in enumerate(models)}
    given_base = {} if name == "linear" else {"base": base}
    parameters = parameters | {"weight": dict(zip(inputs, WEIGHTS, strict=True))}
    theirs = mergekit.merge_state_dicts(
        given_base | inputs, name, parameters=parameters, base="base" if given_base else None
    )
    ours = dict(merge_states(method, models, base if given_base else None))
    torch.testing.assert_close(ours["w"], theirs["w"])
