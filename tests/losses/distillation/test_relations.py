"""Losses about how texts lie to each other: SimilarityMatrix and RelativeTriplets."""

from __future__ import annotations

import time
from itertools import combinations

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.losses.distillation import similarity_matrix
from embedtrain.losses.distillation.relative_triplets import RelativeTriplets, ordered_hinge
from embedtrain.losses.distillation.similarity_matrix import SimilarityMatrix
from tests.helpers.batches import with_leaves
from tests.losses.distillation.batches import gradients, taught_batch

KINDS = ["queries", "positives", "negatives"]


def vectors(batch, texts) -> list[torch.Tensor]:
    documents = list(zip(batch.documents.values, batch.relation.is_positive.tolist(), strict=True))
    return [
        *(batch.queries.values if "queries" in texts else []),
        *(v for v, is_positive in documents if ("positives" if is_positive else "negatives") in texts),
    ]


def slow_matrix(batch, texts) -> torch.Tensor:
    y, t = vectors(batch, texts), vectors(batch.teachers["teacher"], texts)
    size = len(y)
    return sum((y[i] @ y[j] - t[i] @ t[j]) ** 2 for i in range(size) for j in range(size)) / size**2


def slow_triplets(batch, texts, margin: float) -> torch.Tensor:
    y, t = vectors(batch, texts), vectors(batch.teachers["teacher"], texts)
    pairs = [(y[i] @ y[j], t[i] @ t[j]) for i, j in combinations(range(len(y)), 2)]
    total = sum(
        torch.relu(s_b - s_a + margin) for s_a, t_a in pairs for s_b, t_b in pairs if t_a > t_b
    )  # fmt: skip
    return total / (len(pairs) * (len(pairs) - 1) / 2)


@pytest.mark.parametrize("texts", [["queries"], ["queries", "positives"], KINDS])
def test_the_mean_squared_difference_of_all_similarities(texts, monkeypatch):
    monkeypatch.setattr(similarity_matrix, "ROWS_AT_ONCE", 4)
    batch = taught_batch(negatives=(0, 2))
    loss = SimilarityMatrix(texts=texts)(batch).loss
    other = with_leaves(batch)
    expected = slow_matrix(other, texts)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    check_gradients(batch, loss, other, expected)


@pytest.mark.parametrize("margin", [0.0, 0.015, 0.5])
@pytest.mark.parametrize("texts", [["queries"], ["queries", "positives"]])
def test_the_hinge_over_all_pairs_of_pairs(texts, margin):
    batch = taught_batch(queries=5, negatives=(0, 2))
    loss = RelativeTriplets(texts=texts, margin=margin)(batch).loss
    other = with_leaves(batch)
    expected = slow_triplets(other, texts, margin)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    check_gradients(batch, loss, other, expected)


def check_gradients(batch, loss, other, expected):
    for found, wanted in zip(gradients(batch, loss), gradients(other, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def naive_hinge(s, t, margin):
    s = s.clone().requires_grad_()
    hinge = torch.relu(s[None, :] - s[:, None] + margin)
    value = (hinge * (t[:, None] > t[None, :])).sum()
    return value.detach(), torch.autograd.grad(value, s)[0]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 17, 64, 100])
@pytest.mark.parametrize("kind", ["distinct", "tied teacher", "tied student", "all equal"])
def test_the_sorted_hinge_is_the_naive_one_also_with_ties(size, kind):
    draw = torch.Generator().manual_seed(size)
    s, t = torch.randn(2, size, generator=draw, dtype=torch.float64)
    if kind == "tied teacher":
        t = (2 * t).round()
    if kind == "tied student":
        s = (4 * s).round() / 4
    if kind == "all equal":
        t = torch.zeros_like(t)
    for margin in (0.0, 0.25):
        value, gradient = ordered_hinge(s, t, margin)
        expected, wanted = naive_hinge(s, t, margin)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_a_hundred_thousand_pairs_take_no_ten_billion_steps():
    draw = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 100_000, generator=draw)
    started = time.process_time()
    ordered_hinge(s, t, 0.1)
    assert time.process_time() - started < 20  # 10^10 hinges would take minutes and 80 GB


def test_the_same_space_turned_has_no_difference_and_the_same_order():
    batch = taught_batch(dim=5, teacher_dim=5)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    taught = batch.teachers["teacher"]
    with torch.no_grad():
        batch.queries.values.copy_(taught.queries.values @ turn)
        batch.documents.values.copy_(taught.documents.values @ turn)
    assert SimilarityMatrix()(batch).loss.item() == pytest.approx(0, abs=1e-25)
    assert RelativeTriplets(margin=0.0)(batch).loss.item() == pytest.approx(0, abs=1e-14)


def test_a_margin_below_0_is_refused():
    with pytest.raises(ConfigError, match=r"loss\.margin: expected a number of at least 0"):
        RelativeTriplets(margin=-0.1)
