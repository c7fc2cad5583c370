"""One step of a token objective: texts -> gradients, chunk by chunk.

    1. Settle what is asked of every text of the step, all micro-batches together, and count the predictions of all ranks.
    2. For each length-sorted chunk: a forward pass, the sums of its terms divided by those counts, a backward pass.
    3. Add the gradients of all ranks.

The value is a sum over predictions divided by a number that is known beforehand, so it falls apart into chunks by itself:
no activations outlive their chunk, and there is nothing to cache. Dropout is a function of (seed, step, rank, chunk).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from embedtrain import distributed
from embedtrain.data.chunking import chunks, divided
from embedtrain.errors import TrainingError
from embedtrain.sharding import gather_outer, passes
from embedtrain.training.step import StepResult, mix
from embedtrain.types import TokenBatch, TokenTask


class TokenStep:
    """Gradients of a token objective over one step, left in `.grad` of what it trains.

    Args:
        encoder: an Encoder; the objective reads its parts.
        objective: see `embedtrain.types.TokenObjective`.
        chunk_tokens: tokens of one forward pass. Changes memory and speed, not the result (but see `seed`).
        seed: of masks and dropout. Masks depend on nothing but seed, step and text; another `chunk_tokens` groups texts in
            another way and so draws another dropout.
        autocast: makes the context of the forward passes (bf16, fp16); cross-entropy always runs in fp32.
        scale: multiplies the loss before the backward (fp16 only).
        weight: multiplies the objective, gradient and value; beside a loss it is not 1.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        objective: nn.Module,
        chunk_tokens: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        scale: Callable[[Tensor], Tensor] = lambda value: value,
        weight: float = 1.0,
    ) -> None:
        self.encoder = encoder
        self.loss = objective
        self.chunk_tokens = chunk_tokens
        self.seed = seed
        self.device = torch.device(device)
        self.autocast = autocast
        self.scale = scale
        self.weight = weight

    @property
    def parameters(self) -> list[nn.Parameter]:
        parts = learning(self.encoder, self.loss).values()
        return [p for module in parts for p in module.parameters() if p.requires_grad]

    def __call__(self, micro_batches: Sequence[TokenBatch], step: int) -> StepResult:
        """Raises TrainingError before any update when the loss is not finite, naming rows."""
        result = self.add_gradients(micro_batches, step)
        distributed.sum_gradients(self.parameters)
        return result

    def add_gradients(self, micro_batches: Sequence[TokenBatch], step: int) -> StepResult:
        """The same without the sum over ranks: this rank's share is added to each gradient."""
        task = self._task(micro_batches, step)
        factors = self._factors(task, step)
        sums = dict.fromkeys(factors, 0.0)
        bad: list[str] = []
        pieces = chunks(task.lengths, self.chunk_tokens)
        wanted = passes(len(pieces), self.encoder)
        pieces = divided(pieces, wanted)
        for number, index in enumerate(pieces):
            chunk = task.select(index)
            found = self._backward(chunk, factors, mix(self.seed, step, distributed.rank(), number))
            for term, value in found.items():
                sums[term] += value
            if not all(map(math.isfinite, found.values())):
                bad += chunk.rows or [f"item {i}" for i in index.tolist()]
        for number in range(len(pieces), wanted):  # read again for nothing: see sharding.py
            nothing = {term: (0.0, count) for term, (_, count) in factors.items()}
            self._backward(task.select(pieces[-1][:1]), nothing, mix(self.seed, step, distributed.rank(), number))
        self._refuse_non_finite(bad, step)
        return self._result(sums, factors)

    def first_line(self, micro_batches: Sequence[TokenBatch]) -> str:
        """What the first step asks, in words. Every rank calls it."""
        task = self._task(micro_batches, 0)
        own = [
            len(task),
            int(task.lengths.sum()) // task.passes,
            *(int(count.sum()) for count in task.targets.values()),
        ]
        items, tokens, *asked = distributed.sum_over_ranks(torch.tensor(own)).tolist()
        predictions = ", ".join(f"{count:,} of {term}" for term, count in zip(task.targets, asked, strict=True))
        what = "pairs" if len(task.texts) == 2 else "texts"
        return f"first step: {items:,} {what}, {tokens:,} tokens; predictions: {predictions}"

    def _task(self, micro_batches: Sequence[TokenBatch], step: int) -> TokenTask:
        prepare: Callable[[TokenBatch, int], TokenTask] = self.loss.prepare  # type: ignore[assignment]
        return TokenTask.cat([prepare(batch, mix(self.seed, step)) for batch in micro_batches])

    def _factors(self, task: TokenTask, step: int) -> dict[str, tuple[float, float]]:
        """(weight, predictions of all ranks) of each term."""
        counts = torch.stack([task.targets[term].sum() for term in task.targets])
        total = dict(zip(task.targets, distributed.sum_over_ranks(counts).tolist(), strict=True))
        if not any(total.values()):
            raise TrainingError(
                f"step {step}: none of its texts has a word to predict. Are they longer than their special tokens and prompts?"
            )
        weights: dict[str, float] = self.loss.weights  # type: ignore[assignment]
        return {term: (self.weight * weights[term], max(1, count)) for term, count in total.items()}

    def _backward(self, chunk: TokenTask, factors: dict[str, tuple[float, float]], seed: int) -> dict[str, float]:
        """The sums of a chunk by term, with its gradient added."""
        torch.manual_seed(seed)
        gather_outer(self.encoder)
        with self.autocast():
            sums: dict[str, Tensor] = self.loss(self.encoder, chunk.to(self.device))
        share = torch.stack([weight / count * sums[term] for term, (weight, count) in factors.items()]).sum()
        self.scale(share).backward()
        return {term: value.item() for term, value in sums.items()}

    def _refuse_non_finite(self, bad: list[str], step: int) -> None:
        if not distributed.any_rank(bool(bad)):
            return
        rows = [row for part in distributed.gather_objects(bad[:5]) for row in part]
        raise TrainingError(
            f"step {step}: the loss is not finite; rows in the chunks concerned: {', '.join(rows[:5])}. No weight was changed by "
            "this step. A lower optim.learning_rate, or training.mixed_precision=bf16 instead of fp16, are the usual remedies; "
            "the last checkpoint is intact."
        )

    def _result(self, sums: dict[str, float], factors: dict[str, tuple[float, float]]) -> StepResult:
        """The means of all ranks: the terms as metrics, weighted together as loss."""
        totals = distributed.sum_over_ranks(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        means = {term: total / factors[term][1] for term, total in zip(sums, totals, strict=True)}
        return StepResult(sum(factors[term][0] * mean for term, mean in means.items()), means)


def learning(encoder: nn.Module, objective: nn.Module) -> dict[str, nn.Module]:
    """What learns from an objective, by name. A head of the encoder that it does not read must not even decay."""
    parts: tuple[str, ...] = objective.trains  # type: ignore[assignment]
    return {f"encoder.{part}": encoder.get_submodule(part) for part in parts} | {"objective": objective}
