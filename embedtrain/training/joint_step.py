"""Contrast and token objectives in one step: the gradients of both, added before the ranks add theirs.

    L = loss + sum over objectives o of   weight[o] * o

Each is a mean over the step's queries, or predictions, of all ranks, so the sum is one too, whatever the chunks and the ranks. An
objective reads its texts by passes of its own (it may hide words of them, and its graph ends with each chunk), so it costs what
it costs alone; what it shares with the contrast is the update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from embedtrain.training.step import ContrastiveStep, StepResult, mix
from embedtrain.training.token_step import TokenStep
from embedtrain.types import EmbeddingBatch, LossOutput, TokenBatch, text_id


class Joined(nn.Module):
    """A loss and the objectives added to it, as one thing to learn from.

    weights   of each objective, by its name
    """

    def __init__(self, loss: nn.Module, objectives: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.loss = loss
        self.objectives = nn.ModuleDict(objectives)
        self.weights = dict(weights)

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        """The loss alone; what objectives read is not in the batch."""
        return self.loss(batch)


class JointStep(ContrastiveStep):
    """Gradients of a loss and of what is added to it. Metrics: those of the loss; its value as `contrast`, and each term of an
    objective, without its weight, as `<objective>/<term>`."""

    def __init__(self, *, learned: Joined, passes: Mapping[str, Any], contrast: Mapping[str, Any]) -> None:
        """`passes`: what both kinds of step take. `contrast`: what that of the loss takes besides."""
        super().__init__(loss=learned, **passes, **contrast)
        self.added = {
            name: TokenStep(
                objective=objective,
                weight=learned.weights[name],
                **{**passes, "seed": mix(passes["seed"], text_id(name))},  # two of one kind hide other words
            )
            for name, objective in learned.objectives.items()
        }

    def add_gradients(self, micro_batches: Sequence[TokenBatch], step: int) -> StepResult:
        result = super().add_gradients(micro_batches, step)
        result.metrics["contrast"] = result.loss
        for name, added in self.added.items():
            found = added.add_gradients(micro_batches, step)
            result.loss += found.loss
            result.metrics |= {f"{name}/{term}": value for term, value in found.metrics.items()}
        return result
