"""The loop. It owns the order of things: the step makes gradients, the loader batches, the callbacks all the rest."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from embedtrain import distributed
from embedtrain.backbones.soft_mask import set_step
from embedtrain.data.loader import StepLoader
from embedtrain.errors import TrainingError
from embedtrain.sharding import clip_gradients
from embedtrain.training.callbacks import Callback
from embedtrain.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from embedtrain.training.optim import set_learning_rates
from embedtrain.training.step import ContrastiveStep, StepResult
from embedtrain.training.telemetry import SpeedMeter
from embedtrain.training.token_step import TokenStep
from embedtrain.training.trackers import Tracker
from embedtrain.training.trackers.jsonl import JsonLinesTracker
from embedtrain.types import TokenBatch

if TYPE_CHECKING:
    from embedtrain.training.negatives import NegativeMining

log = logging.getLogger("embedtrain")


class Terminated(Exception):
    """SIGTERM or SIGINT came; a checkpoint was written and the same command goes on from it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as a shell reports a process that a signal ended


@dataclass
class Trainer:
    """Train `step.encoder` by `step.loss` for `total_steps` updates, from wherever the run directory stands.

    Args:
        named: trainable parameters by stable name.
        schedule: step -> factor on the learning rates.
        clip_norm: largest norm of the gradient of all parameters; null leaves it.
        scaler: torch's GradScaler for fp16, else None.
        checkpoints: folder of checkpoints; `keep` of them stay.
        fingerprint: what a checkpoint must agree on to be resumed (the data's hashes).
        negatives: hard negatives mined as the run goes; null: those of the rows.
        on_first_step: sees the first batches, before the first update; called on every rank.
    """

    step: ContrastiveStep | TokenStep
    loader: StepLoader
    optimizer: torch.optim.Optimizer
    named: list[tuple[str, nn.Parameter]]
    schedule: Callable[[int], float]
    total_steps: int
    checkpoints: Path
    keep: int = 2
    clip_norm: float | None = 1.0
    log_every: int = 10
    scaler: Any = None
    callbacks: dict[str, Callback] = field(default_factory=dict)
    trackers: Sequence[Tracker] = ()
    fingerprint: dict[str, Any] = field(default_factory=dict)
    negatives: NegativeMining | None = None
    on_first_step: Callable[[Sequence[TokenBatch]], None] = lambda micro_batches: None

    def __post_init__(self) -> None:
        self.stop_reason: str | None = None
        self._signal: int | None = None
        self._saved_at = -1

    def resume(self) -> int:
        """Load the newest whole checkpoint, if there is one. Returns the number of updates already made."""
        checkpoint = find_checkpoint(self.checkpoints)
        if checkpoint is None:
            return 0
        for key, value in self.fingerprint.items():
            saved = checkpoint.state["fingerprint"].get(key)
            if saved != value:
                raise TrainingError(
                    f"{checkpoint.path}: {key} is not what this run was started with ({saved} then, {value} now), so the "
                    "batches would not be the same. Restore it, or start a new run with another run.name."
                )
        load_checkpoint(checkpoint, named=self.named, optimizer=self.optimizer, buffers=self._buffers())
        for name, callback in self.callbacks.items():
            callback.load_state_dict(checkpoint.state["callbacks"].get(name, callback.state_dict()))
        if self.scaler is not None and checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        for tracker in self.trackers:
            if isinstance(tracker, JsonLinesTracker):
                tracker.rewind(checkpoint.step)
        self.stop_reason = checkpoint.state["stop_reason"]
        self._saved_at = checkpoint.step
        log.info("resumed from %s: %d of %d steps are done", checkpoint.path, checkpoint.step, self.total_steps)
        return checkpoint.step

    def fit(self, start: int = 0) -> int:
        """Make updates `start` .. `total_steps`. Returns the number made in all. Raises Terminated after a signal."""
        done = start
        speed = SpeedMeter()
        set_step(self.step.encoder, done)
        hidden = None if distributed.is_main() else True  # None: shown on a terminal; a log file gets lines instead
        bar = tqdm(total=self.total_steps, initial=start, desc="train", unit="step", disable=hidden)
        with self._signals(), bar:
            batches: Iterator[list[TokenBatch]] = iter(())
            until = start  # batches are asked for up to here: no further than the next change of hard negatives
            while done < self.total_steps and self.stop_reason is None:
                asked = time.perf_counter()
                if done == until:
                    until = self._next_change(done)
                    batches = iter(self.loader.steps(done, until))
                    speed.leave_out(time.perf_counter() - asked)
                    asked = time.perf_counter()
                micro_batches = next(batches)
                speed.add(micro_batches, time.perf_counter() - asked)
                if done == start:
                    self.on_first_step(micro_batches)
                result, norm = self._update(micro_batches, done)
                done += 1
                set_step(self.step.encoder, done)
                bar.update()
                bar.set_postfix(loss=f"{result.loss:.4f}", refresh=False)
                if done % self.log_every == 0 or done in (start + 1, self.total_steps):
                    self._log(done, result, norm, speed)
                for callback in self.callbacks.values():
                    callback.on_step(self, done)
                self.stop_if_told(done)
        for callback in self.callbacks.values():
            callback.on_end(self, done)
        return done

    def _next_change(self, step: int) -> int:
        """Takes up the hard negatives of `step`. Returns the step before which they may be others."""
        if self.negatives is None:
            return self.total_steps
        self.negatives.enter(self, step)
        return min(self.negatives.next_change(step), self.total_steps)

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """What loss and miner remember."""
        remembered = list(self.step.loss.named_buffers())
        return remembered if self.negatives is None else [*remembered, *self.negatives.named_buffers()]

    def _update(self, micro_batches: Sequence[TokenBatch], step: int) -> tuple[StepResult, float]:
        """One optimizer update: the gradient of the whole step, clipped, applied."""
        self.step.encoder.train()
        set_learning_rates(self.optimizer, self.schedule(step))
        result = self.step(micro_batches, step)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = float("inf") if self.clip_norm is None else self.clip_norm
        norm = clip_gradients([p for _, p in self.named], limit)
        if self.scaler is not None:  # skips the update, and lowers the scale, when fp16 overflowed
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif norm != norm or norm == float("inf"):
            raise TrainingError(
                f"step {step}: the loss is finite ({result.loss:.4f}) but the gradient is not. No weight was changed by this "
                "step. Lower optim.learning_rate, or raise loss.temperature; the last checkpoint is intact."
            )
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return result, norm

    def _log(self, done: int, result: StepResult, norm: float, speed: SpeedMeter) -> None:
        values = {"train/loss": result.loss, **{f"train/{k}": v for k, v in result.metrics.items()}}
        values["train/gradient_norm"] = norm
        values["train/learning_rate"] = max(group["lr"] for group in self.optimizer.param_groups)
        values["train/epoch"] = self.loader.epoch_of(done)
        if self.negatives is not None:
            values |= self.negatives.facts(done - 1)
        values |= speed.read()
        self.report(done, values)
        log.info(
            "step %d of %d  loss %.4f  gradient norm %.2f  learning rate %.2e  %.1f queries/s",
            *(done, self.total_steps, result.loss, norm),
            *(values["train/learning_rate"], values["train/queries_per_second"]),
        )

    def report(self, step: int, values: dict[str, float]) -> None:
        """Hand numbers to the trackers (rank 0 alone has any)."""
        for tracker in self.trackers:
            tracker.log(step, values)

    def stop(self, reason: str) -> None:
        """End training after this step, as a success."""
        self.stop_reason = reason

    def unsaved(self) -> None:
        """The weights are no longer those of the newest checkpoint: the next `save` writes them also at the same step."""
        self._saved_at = -1

    def save(self, step: int) -> None:
        """Write a checkpoint; every rank waits, and every rank hears of a failure."""
        if self._saved_at == step:
            return
        if self.negatives is not None:
            self.negatives.settle()
        failure: Exception | None = None
        state = {
            "step": step,
            "stop_reason": self.stop_reason,
            "fingerprint": self.fingerprint,
            "callbacks": {name: callback.state_dict() for name, callback in self.callbacks.items()},
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        try:
            save_checkpoint(
                self.checkpoints,
                named=self.named,
                optimizer=self.optimizer,
                state=state,
                keep=self.keep,
                buffers=self._buffers(),
            )
        except Exception as error:
            failure = error
        failed = distributed.broadcast_object(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        if failed is not None:
            raise TrainingError(f"rank 0 could not save: {failed}")
        self._saved_at = step

    @contextmanager
    def _signals(self):
        """SIGTERM (a scheduler's, a preempted machine's) and Ctrl-C end the run after the step at hand, saved."""

        def note(number: int, frame: Any) -> None:
            if self._signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt  # the second Ctrl-C means now
            self._signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop_if_told(self, done: int) -> None:
        """Every rank calls it. Raises Terminated, with a checkpoint of `done` updates written, where a signal came to any."""
        if distributed.any_rank(self._signal is not None):
            self.save(done)
            raise Terminated(
                f"stopped after {done} of {self.total_steps} steps and saved in {self.checkpoints}; the same command goes on.",
                self._signal or signal.SIGTERM,  # another rank's, where this one heard nothing
            )
