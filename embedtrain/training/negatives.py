"""Hard negatives of a run that mines: found before the first step, and again when `training.refresh` says so.

    <run>/negatives/step_00000000/           found by the weights of step 0: a version, see data/mined.py
    <run>/negatives/step_00000500/           by those of step 500
    <run>/negatives/step_00000500.mining/    at work, see mining_process.py; gone when the version is taken up

Versions stay: they say what was trained on, and a run that is resumed at any step finds those of that step. Work beside the
training that a kill ended is begun again from the weights that were kept for it.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from embedtrain import distributed
from embedtrain.config.build import build
from embedtrain.data.draws import Ints
from embedtrain.data.mined import NOTHING, MinedNegatives
from embedtrain.data.sources import Source
from embedtrain.encoder import Encoder
from embedtrain.errors import TrainingError
from embedtrain.mining.corpus import corpus_fingerprint
from embedtrain.mining.job import write_version
from embedtrain.mining.miner import Miner
from embedtrain.sharding import whole
from embedtrain.store.ranks import on_main
from embedtrain.training.learned_rows import LearnedRows, refuse_other_embeddings
from embedtrain.training.mining_process import MiningProcess, keep_weights
from embedtrain.training.refresh import Periodic, Triggered

if TYPE_CHECKING:
    from embedtrain.training.trainer import Trainer

log = logging.getLogger("embedtrain")

POLL_SECONDS = 0.5
_ROWS_AT_ONCE = 65536


class NegativeMining:
    """What the trainer asks at every step before which hard negatives may change. Every rank makes the same calls.

    miner      finds them
    refresh    when again; None: once, before the first step
    encoder    as it trains
    sources    by name, of the mixture
    folder     of the run (or its stage)
    settings   of the stage, for the process that mines beside the training
    start      weights that the stage started from, where that is not its model: a file; None

    Raises ConfigError where the scores of an encoder's negatives cannot be followed.
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
        self.learned: LearnedRows | None = None
        self.process: MiningProcess | None = None
        self.total_steps = sys.maxsize  # of the run: nothing is begun that no step would use
        self._waited = 0.0
        if isinstance(refresh, Triggered):
            refuse_other_embeddings(encoder)
            self.learned = LearnedRows(refresh, {name: len(source) for name, source in sources.items()})
        elif refresh is not None:
            self.process = MiningProcess(refresh, settings, start)

    @property
    def fingerprint(self) -> dict[str, str]:
        """What the negatives depend on besides the settings and the rows: a run is resumed only where this is the same."""
        corpus = self.miner.corpus
        return {} if corpus is None else {f"the file miner.corpus={corpus}": corpus_fingerprint(corpus)}

    def next_change(self, step: int) -> int:
        """The first step after this one before which `enter` has to be called again."""
        return sys.maxsize if self.refresh is None else self.refresh.next_change(step)

    def version(self, step: int) -> int:
        """The step whose weights found the negatives, or the lists of them, that `step` uses."""
        return self.refresh.version(step) if isinstance(self.refresh, Periodic) else 0

    def enter(self, trainer: Trainer, step: int) -> None:
        """Hands the loader the negatives that `step` uses, after whatever must be mined or waited for."""
        began = time.perf_counter()
        if step == 0:
            # A start that reached no checkpoint may have had other settings, so what it mined is not of this run.
            on_main(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        wanted = self.version(step)
        if not self._there(wanted):
            if wanted == step:
                self._mine_here(step)
            else:
                self._wait(trainer, wanted, step)
        if isinstance(self.refresh, Triggered):
            self._look(trainer, step)
        else:
            self._take_up(trainer, wanted, step)
        if isinstance(self.refresh, Periodic):
            self._mine_beside(self.refresh, step)
        self._waited += time.perf_counter() - began

    def facts(self, step: int) -> dict[str, float]:
        """For the telemetry of an update from `step` on. Starts the clock of waiting again."""
        waited, self._waited = self._waited, 0.0
        return {"negatives/age": float(step - self.version(step)), "negatives/wait_seconds": waited}

    def close(self) -> None:
        """Ends what is still mined beside the training; its weights stay for a resumed run."""
        if self.process is not None:
            self.process.end()

    # ------------------------------------------------------------------------------------------------------ versions

    def _take_up(self, trainer: Trainer, version: int, step: int) -> None:
        """Tells what is new, at the steps at which something is: `negatives/...` of the first update that uses it."""
        trainer.loader.negatives = self._negatives(version)
        before = self.version(step - 1) if step else None
        if not distributed.is_main() or before == version:
            return
        if self.process is not None:
            self.process.end()  # it has written its version
        shutil.rmtree(self._work(version), ignore_errors=True)
        negatives = trainer.loader.negatives
        facts = {"negatives/short_rows": float(negatives.manifest["short_rows"])}
        if before is not None:
            facts["negatives/turnover"] = turnover(MinedNegatives(self._version(before)), negatives)
            log.info(
                "step %d  from here on negatives of the weights of step %d, %.1f%% of them not those of step %d",
                *(step, version, 100 * facts["negatives/turnover"], before),
            )
        trainer.report(step + 1, facts)

    def _negatives(self, version: int) -> MinedNegatives:
        negatives = MinedNegatives(self._version(version))
        rows = {name: len(source) for name, source in self.sources.items()}
        if negatives.manifest["rows"] != rows:
            raise TrainingError(
                f"{negatives.path}: negatives for rows {negatives.manifest['rows']}, and the run has {rows}. They were mined for "
                "other data; start again with another run.name."
            )
        return negatives

    def _mine_here(self, step: int) -> None:
        """All ranks together, with the weights of now. What a killed try has embedded is embedded again: rounding may differ."""
        if step == 0:
            with whole(self.encoder):
                write_version(self.miner, self.sources, self.encoder, self._version(0), step=0)
            return
        work = self._work(step)
        on_main(lambda: shutil.rmtree(work, ignore_errors=True))
        store = work / "embeddings"
        with whole(self.encoder):
            write_version(self.miner, self.sources, self.encoder, self._version(step), step=step, store=store)
        on_main(lambda: shutil.rmtree(work, ignore_errors=True))

    # -------------------------------------------------------------------------------------------------------- beside

    def _mine_beside(self, refresh: Periodic, step: int) -> None:
        """Begins, or goes on, with what is to be mined while `step` and those after it are made."""
        pending = refresh.pending(step)
        if pending is None or refresh.next_change(step) >= self.total_steps or self._there(pending):
            return

        if pending == step:
            keep_weights(self.encoder, self._work(step))
        on_main(lambda: self._begin(pending))

    def _begin(self, version: int) -> None:
        """Rank 0 alone."""
        assert self.process is not None
        self.process.begin(self.encoder, version, self._work(version), self._version(version))

    def _wait(self, trainer: Trainer, version: int, step: int) -> None:
        """For the process that mines it, on all ranks. Raises TrainingError, on all of them, where it failed."""
        started, said = time.monotonic(), False
        while not on_main(lambda: self._is_over(version)):
            trainer.stop_if_told(step)
            if not said:
                said = True
                log.info("step %d  waits for the negatives of the weights of step %d", step, version)
            time.sleep(POLL_SECONDS)
        if said:
            log.info(
                "step %d  waited %.0f s; more training.refresh.threads, or a larger lag or every, would hide it",
                *(step, time.monotonic() - started),
            )

    def _is_over(self, version: int) -> bool:
        """Rank 0 alone."""
        if self.process is None:
            raise TrainingError(f"{self._version(version)} is gone. Start again with another run.name.")
        if not self.process.is_there:
            self._begin(version)
        if not self._is_whole(version):
            self.process.refuse_failure(version, self._work(version))
        return self._is_whole(version)

    # ----------------------------------------------------------------------------------------------------- triggered

    def _look(self, trainer: Trainer, step: int) -> None:
        """Moves rows on in their lists, where it is time to."""
        assert self.learned is not None
        assert isinstance(self.refresh, Triggered)
        lists, width = self._negatives(0), self.refresh.num_negatives
        looks = step % self.refresh.every == 0
        moved: np.ndarray | None = None
        if step and looks:
            self.settle()
            moved = self.learned.look({name: lists.counts(name) for name in self.sources})
        trainer.loader.negatives = lists.window(self.learned.starts(), width)
        trainer.step.observe = self.learned.observe  # type: ignore[union-attr]
        if not looks:
            return
        counts = np.concatenate([trainer.loader.negatives.counts(name) for name in self.sources])
        facts = {"negatives/short_rows": float((counts < width).sum())}
        if moved is not None:
            facts["negatives/moved_rows"] = float(moved.sum())
            facts["negatives/turnover"] = float(counts[moved].sum() / max(1, counts.sum()))
            log.info("step %d  %d of %d rows have learned their negatives, and go on", step, moved.sum(), moved.size)
        trainer.report(step + 1, facts)

    def settle(self) -> None:
        """What every rank has seen since the last time becomes known to all."""
        if self.learned is not None:
            self.learned.settle()

    def named_buffers(self) -> Iterable[tuple[str, Tensor]]:
        """What a checkpoint must hold."""
        if self.learned is None:
            return []
        return [(f"negatives.{name}", buffer) for name, buffer in self.learned.buffers().items()]

    # -------------------------------------------------------------------------------------------------------- places

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
        for start in range(0, len(after.numbers(name)), _ROWS_AT_ONCE):
            was, now = (_text_ids(side, name, slice(start, start + _ROWS_AT_ONCE)) for side in (before, after))
            there = now != NOTHING
            new += int((there & ~(now[:, :, None] == was[:, None, :]).any(axis=2)).sum())
            total += int(there.sum())
    return new / max(1, total)


def _text_ids(negatives: MinedNegatives, source: str, rows: slice) -> Ints:
    """[R, K] identities of the negatives of some rows; NOTHING behind the last of a row."""
    return np.append(negatives.text_ids(source), NOTHING)[negatives.numbers(source)[rows]]  # NOTHING is the last place


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
