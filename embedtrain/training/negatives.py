"""Hard negatives of a run that mines: found before the first step, and again when `training.refresh` says so.

    <run>/negatives/step_00000000/     found by the weights of step 0: a version, see data/mined.py
    <run>/negatives/step_00000500/     by those of step 500
    <run>/negatives/step_00000500.mining/    at work: job.json, weights.safetensors, log.txt; gone when the version is there

Versions stay: they say what was trained on, and a run that is resumed at any step finds those of that step. Work beside the
training that a kill ended is begun again from the weights that were kept for it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from embedtrain import distributed
from embedtrain.config.build import build
from embedtrain.data.mined import NOTHING, MinedNegatives
from embedtrain.data.sources import Source
from embedtrain.encoder import Encoder
from embedtrain.errors import TrainingError
from embedtrain.mining.job import write_version
from embedtrain.mining.miner import Miner
from embedtrain.training.learned_rows import LearnedRows
from embedtrain.training.refresh import Periodic, Triggered

if TYPE_CHECKING:
    from embedtrain.training.trainer import Trainer

log = logging.getLogger("embedtrain")

POLL_SECONDS = 0.5


class NegativeMining:
    """What the trainer asks at every step before which hard negatives may change. Every rank makes the same calls.

    miner      finds them
    refresh    when again; None: once, before the first step
    encoder    as it trains
    sources    by name, of the mixture
    folder     of the run (or its stage)
    settings   of the stage, for the process that mines beside the training
    start      weights that the stage started from, where that is not its model: a file; None
    """

    def __init__(
        self,
        *,
        miner: Miner,
        refresh: Periodic | Triggered | None,
        encoder: Encoder,
        sources: Mapping[str, Source],
        folder: Path,
        settings: Mapping[str, Any],
        start: Path | None = None,
    ) -> None:
        self.miner = miner
        self.refresh = refresh
        self.encoder = encoder
        self.sources = dict(sources)
        self.folder = folder / "negatives"
        self.settings = settings
        self.start = start
        self.learned = (
            LearnedRows(refresh, {name: len(source) for name, source in sources.items()})
            if isinstance(refresh, Triggered)
            else None
        )
        self.total_steps = sys.maxsize  # of the run: nothing is begun that no step would use
        self._process: subprocess.Popen | None = None
        self._at: int | None = None  # the version in use

    def next_change(self, step: int) -> int:
        """The first step after this one before which `enter` has to be called again."""
        return sys.maxsize if self.refresh is None else self.refresh.next_change(step)

    def enter(self, trainer: Trainer, step: int) -> None:
        """Hands the loader the negatives that `step` uses, after whatever must be mined or waited for."""
        if isinstance(self.refresh, Triggered):
            self._triggered(trainer, step)
            return
        wanted = self.refresh.version(step) if self.refresh is not None else 0
        pending = self.refresh.pending(step) if self.refresh is not None else None
        if not self._there(wanted):
            if wanted == step:
                self._mine_here(step)
            else:
                self._wait(wanted, step)
        self._take_up(trainer, wanted, step)
        if pending is not None and self.next_change(step) < self.total_steps and not self._there(pending):
            self._mine_beside(pending, fresh=pending == step)

    def _take_up(self, trainer: Trainer, version: int, step: int) -> None:
        negatives = MinedNegatives(self._version(version))
        if negatives.manifest["rows"] != {name: len(source) for name, source in self.sources.items()}:
            raise TrainingError(
                f"{negatives.path}: its rows are not those of this run. Delete {self.folder} and the run."
            )
        before = trainer.loader.negatives
        trainer.loader.negatives = negatives
        if self._at == version:
            return
        self._at = version
        facts = {
            "negatives/age": float(step - version),
            "negatives/short_rows": float(negatives.manifest["short_rows"]),
        }
        if before is not None:
            facts["negatives/turnover"] = turnover(before, negatives)
        trainer.report(step, facts)
        if version or before is not None:
            log.info(
                "step %d  negatives of the weights of step %d%s",
                step,
                version,
                f", {facts['negatives/turnover']:.1%} of them new" if before is not None else "",
            )

    # ------------------------------------------------------------------------------------------------------ mining

    def _mine_here(self, step: int) -> None:
        """All ranks together, with the weights of now."""
        store = None if step == 0 else self._work(step) / "embeddings"
        write_version(self.miner, self.sources, self.encoder, self._version(step), step=step, store=store)
        if distributed.is_main():
            shutil.rmtree(self._work(step), ignore_errors=True)
        distributed.barrier()

    def _mine_beside(self, step: int, *, fresh: bool) -> None:
        """In a process of rank 0, from a copy of the weights. `fresh`: of now; else the copy made when it was `step`."""
        if not distributed.is_main() or self._process is not None:
            return
        work = self._work(step)
        weights = work / "weights.safetensors"
        if fresh:
            work.mkdir(parents=True, exist_ok=True)
            partial = weights.with_suffix(".partial")
            trained = {name: p for name, p in self.encoder.named_parameters() if p.requires_grad}
            save_file({name: p.detach().cpu().contiguous() for name, p in trained.items()}, partial)
            partial.replace(weights)
        if not weights.is_file():
            raise TrainingError(
                f"{weights} is gone, from which the negatives of step {step} were being mined. Resume from a checkpoint of "
                f"step {step} or before, or start again in a new run."
            )
        refresh = self.refresh
        assert isinstance(refresh, Periodic)
        job = {
            "config": self.settings,
            "start": None if self.start is None else str(self.start.absolute()),
            "weights": str(weights.absolute()),
            "version": str(self._version(step).absolute()),
            "store": str((work / "embeddings").absolute()),
            "step": step,
            "dtype": None
            if self.encoder.encode_dtype is None
            else str(self.encoder.encode_dtype).removeprefix("torch."),
            "threads": refresh.threads,
        }
        (work / "job.json").write_text(json.dumps(job, indent=2), encoding="utf-8")
        with (work / "log.txt").open("a", encoding="utf-8") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "embedtrain.training.mine_beside", str(work / "job.json")],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_alone(refresh),
            )

    def _wait(self, version: int, step: int) -> None:
        """For the process that mines it, on all ranks. Raises TrainingError, on all of them, where it failed."""
        if distributed.is_main() and self._process is None:
            self._mine_beside(version, fresh=False)
        started, said = time.monotonic(), False
        while True:
            failure = distributed.broadcast_object(self._poll(version) if distributed.is_main() else None)
            if failure == "":
                break
            if failure is not None:
                raise TrainingError(failure)
            if not said and time.monotonic() - started > POLL_SECONDS:
                said = True
                log.info("step %d waits for the negatives of step %d", step, version)
            time.sleep(POLL_SECONDS)
        waited = time.monotonic() - started
        if said:
            log.info("step %d waited %.0f s: a larger training.refresh.lag would hide it", step, waited)

    def _poll(self, version: int) -> str | None:
        """ "" when it is there, None while it is being made, else what went wrong. Rank 0 alone."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return None
        self._process = None
        work = self._work(version)
        if code or not self._is_whole(version):
            lines = (work / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
            return (
                f"the process that mined the negatives of step {version} ended with code {code}: {' | '.join(lines[-3:])}. All "
                f"of it: {work / 'log.txt'}. The same command goes on from the last checkpoint."
            )
        shutil.rmtree(work, ignore_errors=True)
        return ""

    def close(self) -> None:
        """Ends what is still mined beside the training; its weights stay for a resumed run."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    # ---------------------------------------------------------------------------------------------------- triggered

    def _triggered(self, trainer: Trainer, step: int) -> None:
        assert self.learned is not None
        assert isinstance(self.refresh, Triggered)
        if not self._there(0):
            if step:
                raise TrainingError(f"{self._version(0)} is gone, the lists that negatives come from. Start a new run.")
            self._mine_here(0)
        lists = MinedNegatives(self._version(0))
        if step and step % self.refresh.every == 0:
            self.settle()
            lengths = {name: lists.counts(name) for name in self.sources}
            moved = self.learned.look(lengths)
            trainer.report(step, {"negatives/moved_rows": float(moved)})
            if moved:
                log.info("step %d  %d rows go on to their next negatives", step, moved)
        trainer.loader.negatives = lists.window(self.learned.starts(), self.refresh.num_negatives)
        trainer.step.observe = self.learned.observe  # type: ignore[union-attr]

    def settle(self) -> None:
        """What every rank has seen since the last time becomes known to all."""
        if self.learned is not None:
            self.learned.settle()

    def named_buffers(self) -> Iterable[tuple[str, Tensor]]:
        """What a checkpoint must hold."""
        if self.learned is None:
            return []
        return [(f"negatives.{name}", buffer) for name, buffer in self.learned.buffers().items()]

    # ------------------------------------------------------------------------------------------------------- places

    def _version(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _work(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.mining"

    def _is_whole(self, step: int) -> bool:
        return (self._version(step) / "manifest.json").is_file()

    def _there(self, step: int) -> bool:
        """As rank 0 sees it."""
        return distributed.broadcast_object(self._is_whole(step))


def turnover(before: MinedNegatives, after: MinedNegatives) -> float:
    """Share of the negatives of all rows that these rows did not have before."""
    new = total = 0
    for name in after.manifest["sources"]:
        if name not in before:
            continue
        known = before.text_ids(name)
        ids = after.text_ids(name)
        was, now = before.numbers(name), after.numbers(name)
        for block in range(0, len(now), 65536):
            w, n = was[block : block + 65536], now[block : block + 65536]
            there = n != NOTHING
            had = np.where(w != NOTHING, known[w], -1)
            has = np.where(there, ids[n], -2)
            new += int((there & ~(has[:, :, None] == had[:, None, :]).any(axis=2)).sum())
            total += int(there.sum())
    return new / max(1, total)


def _alone(refresh: Periodic) -> dict[str, str]:
    """The environment of a process that is no rank of this launch."""
    of_ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {
        key: value for key, value in os.environ.items() if key not in of_ranks and not key.startswith("TORCHELASTIC")
    }
    env["OMP_NUM_THREADS"] = str(refresh.threads)
    kind, _, number = refresh.device.partition(":")
    env["CUDA_VISIBLE_DEVICES"] = (number or "0") if kind == "cuda" else ""
    return env


def build_mining(
    settings: Mapping[str, Any], encoder: Encoder, sources: Mapping[str, Source], folder: Path, start: Path | None
) -> NegativeMining | None:
    """As the settings of a stage say; None where it mines nothing."""
    if not settings["miner"]:
        return None
    node = settings["training"]["refresh"]
    return NegativeMining(
        miner=build(settings["miner"]),
        refresh=build(node) if node else None,
        encoder=encoder,
        sources=sources,
        folder=folder,
        settings=settings,
        start=start,
    )
