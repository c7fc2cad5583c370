"""What happens between steps: evaluate, stop early, save. Each has a state that travels with the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedtrain.errors import ConfigError
from embedtrain.evaluation.comparison import percent
from embedtrain.sharding import put, save_whole
from embedtrain.tensor_file import TensorFile

if TYPE_CHECKING:
    from embedtrain.evaluation.result import EvaluationResult
    from embedtrain.training.trainer import Trainer

log = logging.getLogger("embedtrain")


class Callback(Protocol):
    """Called on every rank, in the same order, after each update (`step` = updates made) and once at the end."""

    def on_step(self, trainer: Trainer, step: int) -> None: ...

    def on_end(self, trainer: Trainer, step: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Evaluate:
    """Run the evaluators every `every` steps, keep the best weights, stop when they get no better.

    Args:
        evaluate: runs all evaluators on all ranks and returns their results.
        every: steps between evaluations.
        primary: "name/metric" that says which weights are best (higher is better); null: the first evaluator's own.
        patience: evaluations without a new best before the run stops; null never stops.
        best_path: where rank 0 keeps the best trainable weights.
    """

    def __init__(
        self,
        *,
        evaluate: Callable[[], Mapping[str, EvaluationResult]],
        every: int,
        primary: str | None,
        patience: int | None,
        best_path: Path,
    ) -> None:
        self.evaluate = evaluate
        self.every = every
        self.primary = primary
        self.patience = patience
        self.best_path = best_path
        self.best: float | None = None
        self.best_step = 0
        self.since_best = 0
        self._last = -1

    def on_step(self, trainer: Trainer, step: int) -> None:
        if step % self.every == 0:
            self._run(trainer, step)

    def on_end(self, trainer: Trainer, step: int) -> None:
        """The last weights take part in the choice of the best; then the best are put back."""
        if self._last != step:
            self._run(trainer, step)
        if self.best_step != step:
            weights = TensorFile(self.best_path)
            for name, parameter in trainer.named:
                put(parameter, weights[name])
            trainer.unsaved()  # the checkpoint of this step, if there is one, holds the last weights
            log.info("restored the best weights, those of step %d", self.best_step)

    def _run(self, trainer: Trainer, step: int) -> None:
        self._last = step
        results = self.evaluate()
        values = {f"eval/{name}/{metric}": value for name, r in results.items() for metric, value in r.metrics.items()}
        trainer.report(step, values)
        metric, score = primary_score(results, self.primary)
        better = self.best is None or score > self.best
        log.info("step %d  %s %s%s", step, metric, percent(score), ", the best so far" if better else "")
        if better:
            self.best, self.best_step, self.since_best = score, step, 0
            save_whole(dict(trainer.named), self.best_path)
            return
        self.since_best += 1
        if self.patience is not None and self.since_best >= self.patience and self.best is not None:
            trainer.stop(
                f"no improvement for {self.since_best} evaluations (best {metric} {percent(self.best)} at step {self.best_step})"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "since_best": self.since_best, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step = state["best"], state["best_step"]
        self.since_best, self._last = state["since_best"], state["last"]


def primary_score(results: Mapping[str, EvaluationResult], primary: str | None) -> tuple[str, float]:
    """("name/metric", value) of the number that decides. Raises ConfigError for one that nobody measures."""
    if primary is None:
        name, result = next(iter(results.items()))
        return f"{name}/{result.primary}", result.score
    name, _, metric = primary.partition("/")
    if name in results and metric in results[name].metrics:
        return primary, results[name].metrics[metric]
    known = ", ".join(f"{name}/{metric}" for name, result in results.items() for metric in result.metrics)
    raise ConfigError(f"evaluation.primary: nobody measures {primary!r}. Measured are: {known}.")


class Save:
    """A checkpoint every `every` steps (null: only when the run is told to stop, and at the end)."""

    def __init__(self, *, every: int | None) -> None:
        self.every = every

    def on_step(self, trainer: Trainer, step: int) -> None:
        if self.every and step % self.every == 0:
            trainer.save(step)

    def on_end(self, trainer: Trainer, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
