"""Searches for the merged model by gradient, along the arcs between task vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.errors import ConfigError, TrainingError
from embedtrain.merging.methods.slerp import PARALLEL
from embedtrain.merging.methods.task_arithmetic import TaskArithmetic

# The weights stay positive: SGD may step over 0, where the arc between two task vectors would turn round.
SMALLEST_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class SelfPositioning:
    """Learns by SGD where on the arcs between the task vectors the merged model lies, and how far from the base.

        theta(a, lambda) = theta_0 + lambda * V,   V = V_1 turned towards V_2, the result towards V_3, ... by slerp
        minimised over a_1 .. a_M and lambda:   mean over probe batches of InfoNCE(theta(a, lambda)) + mu * lambda

    Self Positioning (arXiv:2410.15035). V_i = theta_i - theta_0 as one vector over all tensors; the angle alpha is that
    between what is merged so far and V_j, and

        slerp(V, V_j) = sin((1 - b) alpha) / sin(alpha) V + sin(b alpha) / sin(alpha) V_j,   b = a_j / (a + a_j)

    with a the mean of the weights merged so far. A larger a_j turns towards V_j; the paper prints the two the other way
    round. Models and base are in memory together while it searches. The loss is the one of the config, on rows of its data.

    mu             of the regulariser, which keeps the model near the base; below 0.05 in the paper
    lambda         where it begins
    weight         where a_1 .. a_M begin
    learning_rate  of SGD
    steps          of SGD, a probe batch each
    samples        rows of the probe set, drawn from the data; 32,000 in the paper
    batch_size     queries in a batch
    seed           of the rows that are drawn
    """

    mu: float = 0.01
    lambda_: float = 1.0
    weight: float | list[float] = 1.0
    learning_rate: float = 0.05
    steps: int = 50
    samples: int = 2048
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        weights = self.weight if isinstance(self.weight, list) else [self.weight]
        if min(weights) <= 0:
            raise ConfigError(f"weight: self_positioning begins with weights above 0, got {self.weight}.")
        if self.mu < 0:
            raise ConfigError(f"mu: expected 0 or more, got {self.mu:g}.")


@dataclass(frozen=True)
class Position:
    """Where the search stands before a step, and the loss there; without one at its end."""

    weights: tuple[float, ...]  # a_1 .. a_M
    lambda_: float
    coefficients: tuple[float, ...]  # of V_1 .. V_M: the merged model is the base plus their sum
    loss: float | None  # of the batch, without the regulariser


def coefficients(gram: Tensor, weights: Tensor, lambda_: Tensor) -> Tensor:
    """What lambda * V is made of: c [M] with lambda * V = sum over i of c_i V_i. Differentiable in both.

    gram: inner products of the task vectors, [M, M] fp64, which is all that angles need. weights: a_1 .. a_M.
    """
    mix = torch.nn.functional.one_hot(torch.tensor(0), len(gram)).to(gram.dtype)
    for number in range(1, len(gram)):
        target = torch.nn.functional.one_hot(torch.tensor(number), len(gram)).to(gram.dtype)
        merged = weights[:number].mean()
        b = weights[number] / (merged + weights[number])
        lengths = ((mix @ gram @ mix) * gram[number, number]).sqrt()
        cos = (mix @ gram @ target) / lengths if float(lengths.detach()) > 0 else torch.ones((), dtype=gram.dtype)
        if abs(float(cos.detach())) > PARALLEL:
            mix = (1 - b) * mix + b * target
            continue
        alpha = torch.acos(cos)
        mix = (torch.sin((1 - b) * alpha) * mix + torch.sin(b * alpha) * target) / torch.sin(alpha)
    return lambda_ * mix


def gram_matrix(vectors: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Inner products [M, M], fp64, of vectors that are given tensor by tensor."""
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for name in vectors[0]:
        rows = torch.stack([vector[name].flatten() for vector in vectors]).double()
        gram += (rows @ rows.T).cpu()
    return gram


def positioned(
    base: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]], made_of: Tensor
) -> dict[str, Tensor]:
    """theta_0 + sum over i of c_i V_i, with gradient for c [M]."""
    factors = made_of.float()
    found = {}
    for name, start in base.items():
        moved = start
        for number, vector in enumerate(vectors):
            moved = moved + factors[number] * vector[name]
        found[name] = moved
    return found


def search(
    method: SelfPositioning,
    base: Mapping[str, Tensor],
    vectors: Sequence[Mapping[str, Tensor]],
    losses: Sequence[Callable[[Mapping[str, Tensor]], Tensor]],
) -> tuple[TaskArithmetic, list[Position]]:
    """The merge that was found and the way there.

    losses: of each probe batch, as a function of the parameters by name; taken in turn. Raises TrainingError for a loss that
    is not finite.
    """
    gram = gram_matrix(vectors)
    begin = method.weight if isinstance(method.weight, list) else [method.weight] * len(vectors)
    if len(begin) != len(vectors):
        raise ConfigError(f"weight: expected one number, or one for each of the {len(vectors)} models, got {begin}.")
    weights = torch.tensor(begin, dtype=torch.float64, requires_grad=True)
    lambda_ = torch.tensor(method.lambda_, dtype=torch.float64, requires_grad=True)
    path: list[Position] = []

    def note(made_of: Tensor, loss: float | None) -> None:
        path.append(Position(tuple(weights.tolist()), lambda_.item(), tuple(made_of.tolist()), loss))

    for step in range(method.steps):
        made_of = coefficients(gram, weights, lambda_)
        loss = losses[step % len(losses)](positioned(base, vectors, made_of))
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"self_positioning: the loss of step {step} is not finite, at lambda={lambda_.item():.3g}. Lower learning_rate."
            )
        note(made_of, float(loss.detach()))
        weights.grad = lambda_.grad = None
        (loss + method.mu * lambda_).backward()
        with torch.no_grad():
            for parameter in (weights, lambda_):
                if parameter.grad is not None:  # one task vector has no arc
                    parameter -= method.learning_rate * parameter.grad
            weights.clamp_(min=SMALLEST_WEIGHT)
    with torch.no_grad():
        made_of = coefficients(gram, weights, lambda_)
        note(made_of, None)
    return TaskArithmetic(weight=made_of.tolist()), path
