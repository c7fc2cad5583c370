"""Steps of a run as token batches, made ahead of time in worker processes.

The main process knows the plan and asks for rows; a worker reads, draws and tokenises them. A step's request holds all that
its batches depend on, so any number of workers, and any start, gives the same batches: to resume costs nothing.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any

from torch.utils.data import DataLoader, Dataset

from embedtrain.data.collate import collate, take
from embedtrain.data.draws import Ints
from embedtrain.data.mined import MinedNegatives
from embedtrain.data.mixture import Mixture
from embedtrain.data.sampling import Rows, Sampler, part, refuse_small_batches
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import EmbedtrainError
from embedtrain.types import Teacher, TokenBatch


@dataclass(frozen=True, slots=True)
class MicroRequest:
    """Rows of one micro-batch on this rank, and that micro-batch's part of its step (all ranks counted)."""

    rows: Rows
    share: float


class StepLoader:
    """This rank's token batches, step by step.

    sampler              the plan of all ranks
    tokenizer            texts -> tokens
    accumulation_steps   micro-batches of a step; each is a contiguous slice of the global batch
    num_workers          processes that read and tokenise ahead; 0 does it when asked
    teachers             by name; what they need of the texts is made in the workers too
    rank, world_size     this rank takes a contiguous slice of each micro-batch, equal to within one row

    Raises ConfigError when a batch has fewer rows than ranks times micro-batches.
    """

    def __init__(
        self,
        *,
        sampler: Sampler,
        tokenizer: TextTokenizer,
        accumulation_steps: int = 1,
        num_workers: int = 1,
        teachers: Mapping[str, Teacher] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sampler = sampler
        self.accumulation_steps = accumulation_steps
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = sampler.steps_per_epoch
        self.negatives: MinedNegatives | None = None  # of the steps that are asked for next, in place of the rows' own
        self._maker = _BatchMaker(sampler, tokenizer, dict(teachers or {}))
        refuse_small_batches(sampler, world_size, accumulation_steps)

    def __len__(self) -> int:
        """Steps of one epoch."""
        return self.steps_per_epoch

    def epoch_of(self, step: int) -> float:
        """Epochs gone through before this step of the run."""
        return step / self.steps_per_epoch

    def steps(self, start: int, stop: int) -> Iterator[list[TokenBatch]]:
        """The micro-batches of steps `start` .. `stop` of the run, counted over all epochs."""
        _ = self.sampler.mixture.indexes  # read here once, and not again in every worker
        self._maker.take_up(self.negatives)
        requests = (self.request(step) for step in range(start, stop))
        if self.num_workers == 0:
            yield from map(self._maker.make, requests)
            return
        loader = DataLoader(
            self._maker,
            sampler=_Once(requests),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            worker_init_fn=partial(_begin_worker, self._ending()),
        )
        for packed in loader:
            result = pickle.loads(packed)
            if isinstance(result, EmbedtrainError):
                raise result
            yield result

    def request(self, step: int) -> list[MicroRequest]:
        """What this rank reads for a step of the run."""
        epoch, number = divmod(step, self.steps_per_epoch)
        batch = self.sampler.epoch(epoch)[number]
        requests = []
        for micro in range(self.accumulation_steps):
            rows = batch[part(len(batch), micro, self.accumulation_steps)]
            own = rows[part(len(rows), self.rank, self.world_size)]
            requests.append(MicroRequest(own, len(rows) / len(batch)))
        return requests

    @staticmethod
    def _ending() -> Event:
        """Is set when this process ends, before its workers are told to."""
        ending = multiprocessing.Event()
        atexit.register(ending.set)
        return ending


class _BatchMaker(Dataset):
    """Request -> token batches. What is sent to the workers."""

    def __init__(self, sampler: Sampler, tokenizer: TextTokenizer, teachers: Mapping[str, Teacher]) -> None:
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.teachers = teachers
        self.take_up(None)

    def take_up(self, negatives: MinedNegatives | None) -> None:
        """From now on rows bring these hard negatives."""
        self.negatives = negatives
        self._mined_counts: dict[str, Ints] = {}  # what each row can bring then
        if negatives is None:
            return
        for name, index in zip(self.sampler.mixture.names, self.sampler.mixture.indexes, strict=True):
            if name in negatives:
                own = index.num_negatives if negatives.keep_own else 0
                self._mined_counts[name] = negatives.counts(name) + own

    def make(self, requests: list[MicroRequest]) -> list[TokenBatch]:
        return [self._batch(request) for request in requests]

    def __getitem__(self, requests: list[MicroRequest]) -> bytes:
        # As bytes, since tensors would travel as one shared-memory file each: many micro-batches run out of file handles.
        # An error of ours travels as a value, since DataLoader would wrap its message into a traceback.
        try:
            return pickle.dumps(self.make(requests), protocol=pickle.HIGHEST_PROTOCOL)
        except EmbedtrainError as error:
            return pickle.dumps(error)

    def _batch(self, request: MicroRequest) -> TokenBatch:
        mixture: Mixture = self.sampler.mixture
        examples, known = [], []
        rows, mined = request.rows, self.negatives
        for source, row, (positives, negatives) in zip(
            rows.source.tolist(), rows.row.tolist(), self.sampler.draws(rows, self._mined_counts), strict=True
        ):
            name = mixture.names[source]
            example = mixture.sources[name][row]
            if mined is not None and name in mined:
                example = mined.extend(example, name, row)
            examples.append(replace(take(example, positives, negatives), source=name))
            known.append(mixture.indexes[source].known_positives(row))
        lengths = {name: source.max_lengths for name, source in mixture.sources.items()}
        batch = collate(examples, self.tokenizer, known=known, share=request.share, lengths=lengths)
        batch = replace(batch, numbers=tuple(rows.row.tolist()))
        if not self.teachers:
            return batch
        return replace(batch, teachers={name: teacher.prepare(examples) for name, teacher in self.teachers.items()})


class _Once:
    """A sampler for DataLoader over requests that are made when they are wanted."""

    def __init__(self, requests: Iterator[list[MicroRequest]]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[list[MicroRequest]]:
        return self.requests


def _unchanged(value: Any) -> Any:
    return value


def _begin_worker(ending: Event, worker: int) -> None:
    # One tokeniser thread for each worker; also keeps the library from warning about threads before the fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A signal to the whole process group is for the trainer, which saves first. Only at its end does SIGTERM mean us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.is_set() else None)
