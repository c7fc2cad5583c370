"""When hard negatives are mined again while training runs. Components of the group `refresh`.

A version of the negatives is taken up at a step that depends on settings and state alone, never on how long anything took: so a
resumed run, or one on other machines, sees the same negatives at the same steps. Mining beside the training that is not
finished when its step comes is waited for.
"""

from __future__ import annotations

import re

from embedtrain.errors import ConfigError


class Periodic:
    """Every n steps, by the weights of then.

    With lag 0 training waits: all ranks mine together and go on with the new negatives. With a lag, another process mines from
    a copy of the weights while training goes on, and its negatives are taken up `lag` steps later (ANCE, arXiv:2007.00808,
    sec. 4: asynchronous index refresh). So negatives in use are `lag` to `lag + every` steps old.

    every    steps from one mining to the next
    lag      steps between the weights and the first use of what they found; 0 to `every`
    device   of the other process: cpu, cuda:7; null: cpu. A GPU that also trains would slow training down
    threads  of the other process on a CPU
    """

    def __init__(self, *, every: int, lag: int = 0, device: str | None = None, threads: int = 1) -> None:
        if every < 1:
            raise ConfigError(f"training.refresh.every={every}: expected at least 1 step.")
        if not 0 <= lag <= every:
            raise ConfigError(
                f"training.refresh.lag={lag}: expected 0 (training waits) to every={every} steps, so that one mining ends before "
                "the next begins."
            )
        if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ConfigError(f"training.refresh.device={device}: expected cpu, cuda, cuda:<number> or null.")
        if threads < 1:
            raise ConfigError(f"training.refresh.threads={threads}: expected at least 1.")
        self.every = every
        self.lag = lag
        self.device = device or "cpu"
        self.threads = threads

    def version(self, step: int) -> int:
        """The step whose weights found the negatives that `step` uses.

        >>> [Periodic(every=10, lag=4).version(step) for step in (0, 9, 10, 13, 14, 23, 24)]
        [0, 0, 0, 0, 10, 10, 20]
        """
        return max(0, (step - self.lag) // self.every * self.every)

    def pending(self, step: int) -> int | None:
        """The step whose weights are being mined with while `step` is made, where that is not over.

        >>> [Periodic(every=10, lag=4).pending(step) for step in (0, 3, 10, 13, 14)]
        [None, None, 10, 10, None]
        """
        last = step // self.every * self.every
        return last if last > self.version(step) else None

    def next_change(self, step: int) -> int:
        """The first step after this one at which mining begins or its negatives are taken up.

        >>> [Periodic(every=10, lag=4).next_change(step) for step in (0, 10, 13, 14)]
        [10, 14, 14, 20]
        """
        last = step // self.every * self.every
        return last + self.lag if step < last + self.lag and last else last + self.every


class Triggered:
    """A row gets the next negatives of its list when it has learned those that it has: Conan-embedding's dynamic hard negative
    mining (arXiv:2408.15710).

    The miner finds a ranked list for each row once, before the first step (Conan leaves out its first 10: filter=shifted). Of
    each row the mean cosine of the negatives that it brought is followed. Every n steps, a row whose negatives score

        factor * score now < score at first   and   |score now| < ceiling

    goes on to the next `num_negatives` of its list; at its end it stays. "Now" is the mean over its visits since it got them, but
    for the first visit, which is "at first". Costs an inner product per negative and step, and no encoding.

    every          steps from one look to the next (Conan: 100)
    num_negatives  of the list that a row has at a time; miner.num_negatives is the length of the list
    factor         the score must have fallen below 1 / factor of the first one (Conan: 1.15)
    ceiling        and below this (Conan: 0.8)
    """

    def __init__(self, *, every: int = 100, num_negatives: int = 8, factor: float = 1.15, ceiling: float = 0.8) -> None:
        if every < 1:
            raise ConfigError(f"training.refresh.every={every}: expected at least 1 step.")
        if num_negatives < 1:
            raise ConfigError(f"training.refresh.num_negatives={num_negatives}: expected at least 1.")
        if not factor >= 1:
            raise ConfigError(f"training.refresh.factor={factor}: expected at least 1.")
        self.every = every
        self.num_negatives = num_negatives
        self.factor = factor
        self.ceiling = ceiling

    def next_change(self, step: int) -> int:
        """The next look."""
        return step // self.every * self.every + self.every
