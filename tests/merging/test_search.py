"""Methods that search: the greedy soup and Self Positioning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from embedtrain.errors import ConfigError, TrainingError
from embedtrain.merging.methods.greedy_soup import GreedySoup, greedy
from embedtrain.merging.methods.self_positioning import (
    SelfPositioning,
    coefficients,
    gram_matrix,
    positioned,
    search,
)
from embedtrain.merging.methods.slerp import slerp
from embedtrain.merging.states import merge_states


def models(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [{"a": torch.randn(3, 4, generator=draw), "b": torch.randn(5, generator=draw)} for _ in range(count)]


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


def test_a_greedy_soup_takes_what_makes_it_no_worse() -> None:
    values = {(1,): 5.0, (1, 2): 5.0, (1, 2, 0): 4.0, (1, 2, 3): 6.0}
    path = greedy([3.0, 5.0, 4.0, 1.0], lambda soup: values[soup])
    assert [(step.models, step.taken) for step in path] == [
        ((1,), True),
        ((1, 2), True),
        ((1, 2, 0), False),
        ((1, 2, 3), True),
    ]
    assert GreedySoup().of([1, 2, 3], 4).weight == [0.0, 1.0, 1.0, 1.0]


def test_of_equal_models_the_soup_begins_with_the_first() -> None:
    assert greedy([1.0, 1.0], lambda soup: 0.0)[0].models == (0,)


def test_positions_are_slerps_of_whole_task_vectors() -> None:
    """The chain over inner products against slerp of the vectors themselves."""
    vectors = models(3)
    a, scale = [0.5, 2.0, 1.0], 0.8
    one, two, three = (flat(vector) for vector in vectors)
    merged = slerp(one, two, a[1] / (a[0] + a[1]))
    merged = slerp(merged, three, a[2] / ((a[0] + a[1]) / 2 + a[2]))
    made_of = coefficients(gram_matrix(vectors), torch.tensor(a, dtype=torch.float64), torch.tensor(scale))
    found = sum(float(c) * vector for c, vector in zip(made_of, (one, two, three), strict=True))
    torch.testing.assert_close(found, scale * merged, rtol=1e-4, atol=1e-5)


def test_a_larger_weight_turns_towards_its_model() -> None:
    gram = gram_matrix(models(2))
    small, large = (coefficients(gram, torch.tensor([1.0, a]).double(), torch.tensor(1.0)) for a in (0.5, 3.0))
    assert large[1] > small[1]
    assert large[0] < small[0]


@pytest.mark.parametrize("parallel", [False, True])
def test_the_gradient_of_a_position_is_its_finite_difference(parallel: bool) -> None:
    base, *vectors = models(4)
    if parallel:
        vectors[1] = {name: 2 * tensor for name, tensor in vectors[0].items()}
    gram = gram_matrix(vectors)
    target = flat(models(1, seed=5)[0]).double()

    def loss(point: Tensor) -> Tensor:
        made_of = coefficients(gram, point[:3], point[3])
        # fp64 in place of `positioned`, so that differences are exact enough
        found = flat(base).double() + sum(c * flat(v).double() for c, v in zip(made_of, vectors, strict=True))
        return (found - target).square().sum() + found.sin().sum()

    point = torch.tensor([1.0, 0.7, 1.4, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (point,), eps=1e-6, atol=1e-6)


def test_the_search_steps_down_the_gradient_of_loss_and_regulariser() -> None:
    base, *vectors = models(3)
    target = {name: base[name] + 0.4 * vectors[0][name] + 0.9 * vectors[1][name] for name in base}

    def loss(state) -> Tensor:
        return sum((state[name] - target[name]).square().mean() for name in target)

    method = SelfPositioning(learning_rate=0.1, steps=2, mu=0.03)
    _, path = search(method, base, vectors, [loss])
    gram = gram_matrix(vectors)
    a = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    value = loss(positioned(base, vectors, coefficients(gram, a, scale)))
    (value + 0.03 * scale).backward()
    assert path[0].loss == pytest.approx(value.item())
    assert path[1].weights == pytest.approx((a - 0.1 * a.grad).tolist())
    assert path[1].lambda_ == pytest.approx(float((scale - 0.1 * scale.grad).detach()))
    assert len(path) == 3
    assert path[2].loss is None


def test_the_search_finds_the_arc_point_that_was_hidden() -> None:
    base, *vectors = models(3)
    gram = gram_matrix(vectors)
    hidden = coefficients(gram, torch.tensor([1.0, 2.0]).double(), torch.tensor(0.6).double())
    target = positioned(base, vectors, hidden)
    method = SelfPositioning(learning_rate=0.2, steps=300, mu=0.0)
    merge, path = search(
        method, base, vectors, [lambda state: sum((state[n] - target[n]).square().mean() for n in target)]
    )
    assert path[-1].lambda_ == pytest.approx(0.6, abs=0.01)
    assert path[-1].weights[1] / path[-1].weights[0] == pytest.approx(2.0, abs=0.05)
    states = [{name: base[name] + vector[name] for name in base} for vector in vectors]
    merged = dict(merge_states(merge, states, base))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, target[name], rtol=1e-2, atol=1e-2)


def test_weights_stay_positive() -> None:
    base, *vectors = models(3)
    _, path = search(
        SelfPositioning(learning_rate=100.0, steps=3),
        base,
        vectors,
        [lambda state: (state["a"] - base["a"] - vectors[0]["a"]).square().sum()],
    )
    assert all(weight > 0 for position in path for weight in position.weights)
    assert all(math.isfinite(weight) for position in path for weight in position.weights)


def test_a_loss_that_is_not_finite_stops_the_search() -> None:
    base, *vectors = models(3)
    with pytest.raises(TrainingError, match="the loss of step 0 is not finite, at lambda=1"):
        search(SelfPositioning(), base, vectors, [lambda state: state["a"].sum() * math.nan])


def test_settings_that_cannot_be_searched_from_are_refused() -> None:
    with pytest.raises(ConfigError, match="begins with weights above 0"):
        SelfPositioning(weight=[1.0, 0.0])
    with pytest.raises(ConfigError, match="mu: expected 0 or more"):
        SelfPositioning(mu=-1.0)
