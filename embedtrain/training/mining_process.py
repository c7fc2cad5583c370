"""The process that mines beside the training, as rank 0 holds it. What runs in it is `mine_beside.py`.

<work>/weights.safetensors    the trained weights of the step that it mines by
<work>/job.json               what it is asked
<work>/embeddings/            of those weights
<work>/log.txt                what it said
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedtrain.encoder import Encoder
from embedtrain.errors import TrainingError
from embedtrain.sharding import save_whole
from embedtrain.training.refresh import Periodic

# What a launcher tells each rank: the process is no rank of this launch.
_OF_RANKS = re.compile(r"RANK|WORLD_SIZE|(LOCAL|GROUP|ROLE)_(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
_LINES_SHOWN = 3


class MiningProcess:
    """At most one at a time. Rank 0 alone.

    refresh    where it computes
    settings   of the stage: it builds its own encoder, sources and miner of them
    start      weights that the stage started from, where that is not its model: a file; None
    """

    def __init__(self, refresh: Periodic, settings: Mapping[str, Any], start: Path | None) -> None:
        self.refresh = refresh
        self.settings = settings
        self.start = start
        self._process: subprocess.Popen | None = None

    def begin(self, encoder: Encoder, step: int, work: Path, version: Path) -> None:
        """Mines `version`, the negatives of `step`, by the weights that `keep_weights` left in `work`.

        Raises TrainingError where they are gone, or no process can be begun.
        """
        if not _weights(work).is_file():
            raise TrainingError(
                f"{_weights(work)} is gone, by which the negatives of step {step} were being mined. Resume from a checkpoint "
                f"of step {step} or before, or start again with another run.name."
            )
        self.end()
        # Of a process that was killed: what it had embedded, it embedded in batches that will not come again.
        shutil.rmtree(work / "embeddings", ignore_errors=True)
        job = {
            "config": self.settings,
            "start": None if self.start is None else str(self.start.absolute()),
            "weights": str(_weights(work).absolute()),
            "version": str(version.absolute()),
            "store": str((work / "embeddings").absolute()),
            "step": step,
            "dtype": None if encoder.encode_dtype is None else str(encoder.encode_dtype).removeprefix("torch."),
            "device": self.refresh.device,
            "threads": self.refresh.threads,
            "parent": os.getpid(),
        }
        try:
            (work / "job.json").write_text(json.dumps(job, indent=2), encoding="utf-8")
            with _log(work).open("w", encoding="utf-8") as out:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "embedtrain.training.mine_beside", str(work / "job.json")],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=environment(self.refresh, os.environ),
                )
        except OSError as error:
            raise TrainingError(f"{work}: the process that mines could not be begun ({error}).") from error

    @property
    def is_there(self) -> bool:
        """Whether one was begun and not yet ended here."""
        return self._process is not None

    def refuse_failure(self, step: int, work: Path) -> None:
        """Raises TrainingError with its last words where it ended, though its negatives are not there."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return
        self._process = None
        said = _log(work).read_text(encoding="utf-8", errors="replace").splitlines()
        raise TrainingError(
            f"the process that mined the negatives of step {step} ended with code {code}: {' | '.join(said[-_LINES_SHOWN:])}. "
            f"All that it said: {_log(work)}. The same command goes on from the last checkpoint."
        )

    def end(self) -> None:
        """Whatever it is at."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def keep_weights(encoder: Encoder, work: Path) -> None:
    """The trained weights of now, whole or not at all; every rank calls it. Raises TrainingError where they cannot be written."""
    save_whole({name: p for name, p in encoder.named_parameters() if p.requires_grad}, _weights(work))


def environment(refresh: Periodic, own: Mapping[str, str]) -> dict[str, str]:
    """That of the process: `own`, without what a launcher says to a rank, and with the one device that it may see."""
    env = {key: value for key, value in own.items() if not _OF_RANKS.fullmatch(key)}
    env["OMP_NUM_THREADS"] = str(refresh.threads)
    env["CUDA_VISIBLE_DEVICES"] = ""
    if refresh.device.startswith("cuda"):
        number = refresh.device.partition(":")[2] or "0"
        seen = own["CUDA_VISIBLE_DEVICES"].split(",") if own.get("CUDA_VISIBLE_DEVICES") else None
        if seen is not None and int(number) >= len(seen):
            raise TrainingError(
                f"training.refresh.device={refresh.device}: this run sees {len(seen)} GPUs (CUDA_VISIBLE_DEVICES="
                f"{','.join(seen)}). Name one of cuda:0 to cuda:{len(seen) - 1}, or cpu."
            )
        env["CUDA_VISIBLE_DEVICES"] = number if seen is None else seen[int(number)]
    return env


def _weights(work: Path) -> Path:
    return work / "weights.safetensors"


def _log(work: Path) -> Path:
    return work / "log.txt"
