from __future__ import annotations

import pytest
import torch

from embedtrain.losses.divergence import DIVERGENCES, cross_entropy, divergences
from embedtrain.losses.similarity import DenseSpace, MaxSimSpace

DRAW = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def slow(name: str, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=p.dtype)
    for a, b in zip(p.flatten(), q.flatten(), strict=True):
        m = (a + b) / 2
        forward, backward = a * torch.log(a / b), b * torch.log(b / a)
        total = (
            total
            + {
                "cross_entropy": -a * torch.log(b),
                "forward": forward,
                "reverse": backward,
                "symmetric": (forward + backward) / 2,
                "js": (a * torch.log(a / m) + b * torch.log(b / m)) / 2,
            }[name]
        )
    return total


@pytest.mark.parametrize("tile_bytes", [1, 2000, None])
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
def test_value_and_gradient_are_those_of_the_formula_in_any_blocks(name, tile_bytes):
    queries, documents, target = drawn(7, 5), drawn(11, 5), drawn(7, 11).log_softmax(1)
    leaves = [queries.requires_grad_(), documents.requires_grad_()]
    rule = cross_entropy if name == "cross_entropy" else DIVERGENCES[name]
    value = divergences(
        {"x": DenseSpace(*leaves)},
        rows=slice(1, 6),
        scale=3.0,
        target=lambda block: target[block.queries],
        divergence=rule,
        tile_bytes=tile_bytes,
    )["x"]
    expected = slow(name, target[1:6].exp(), (3.0 * queries @ documents.T).softmax(1)[1:6])
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    for found, wanted in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_several_students_share_the_target_that_may_read_them():
    dense = [drawn(4, 5).requires_grad_(), drawn(6, 5).requires_grad_()]
    tokens = [drawn(9, 3).requires_grad_(), drawn(14, 3).requires_grad_()]
    offsets = torch.tensor([0, 2, 3, 7, 9]), torch.tensor([0, 1, 4, 5, 9, 12, 14])
    late = MaxSimSpace(tokens[0], offsets[0], tokens[1], offsets[1])
    values = divergences(
        {"dense": DenseSpace(*dense), "late": late},
        rows=slice(None),
        scale=1.0,
        target=lambda block: (block.logits["dense"] + 0.3 * block.logits["late"]).log_softmax(1),
        divergence=DIVERGENCES["forward"],
        tile_bytes=500,
    )
    by_token = (tokens[0] @ tokens[1].T).split(offsets[1].diff().tolist(), dim=1)
    best = torch.stack([part.amax(1) for part in by_token], 1)  # [query tokens, documents]
    logits = {
        "dense": dense[0] @ dense[1].T,
        "late": torch.stack([part.sum(0) for part in best.split(offsets[0].diff().tolist())]),
    }
    target = (logits["dense"] + 0.3 * logits["late"]).detach().softmax(1)
    for name, leaves in (("dense", dense), ("late", tokens)):
        expected = slow("forward", target, logits[name].softmax(1))
        assert values[name].item() == pytest.approx(expected.item(), rel=1e-9)
        for found, wanted in zip(
            torch.autograd.grad(values[name], leaves), torch.autograd.grad(expected, leaves), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*DIVERGENCES])
def test_low_temperatures_stay_finite_in_fp32(name):
    q = torch.nn.functional.normalize(drawn(5, 4).float(), dim=1).requires_grad_()
    value = divergences(
        {"x": DenseSpace(q, -q)},
        rows=slice(None),
        scale=1000.0,
        target=lambda block: (1000 * q @ q.T).detach().log_softmax(1)[block.queries],
        divergence=DIVERGENCES[name],
    )["x"]
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, q)[0]).all()
