"""Real processes for tests of what several ranks do together: gloo on one machine, no GPU.

    def means(values):                       # module level, so that the child can import it
        return sum_over_ranks(values[rank()])

    def test_ranks_add_up():
        assert run_ranks(means, 2, torch.tensor([1.0, 2.0])) == [3.0, 3.0]

Children come from a fork server that has imported torch, transformers and the trainer once, so a group of ranks starts in well
under a second.
"""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import os
import pickle
import platform
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch.distributed", "tests.helpers.runs"])


class RankFailedError(AssertionError):
    """A rank raised, died or hung. The message holds its traceback."""


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """`function(*args)` in `world_size` processes of one gloo group; what each returned, in rank order.

    `function` must be importable (module level), `args` and results picklable; tensors are copied, nothing is shared.
    The first failure ends all ranks and is raised as `RankFailedError`; so is a group that runs past `timeout` seconds,
    after every rank has printed where it stands.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        job = pickle.dumps((function, args))
        children, pipes = [], []
        for rank in range(world_size):
            receive, send = CONTEXT.Pipe(duplex=False)
            child = CONTEXT.Process(
                target=_run_rank, args=(job, rank, world_size, folder, dict(os.environ), timeout, send), daemon=False
            )
            child.start()
            send.close()  # so that the death of the child reads as an end of file
            children.append(child)
            pipes.append(receive)
        try:
            return _collect(pipes, timeout)
        finally:
            for child in children:
                child.join(timeout=1)  # a child that has answered ends by itself
                if child.is_alive():
                    child.kill()
                    child.join()


def _collect(pipes: list[Any], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout + 2  # the children print their stacks first
    while len(results) < len(pipes):
        waiting = [rank for rank in range(len(pipes)) if rank not in results]
        ready = wait([pipes[rank] for rank in waiting], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailedError(f"ranks {waiting} gave no answer within {timeout:.0f} s (their stacks are on stderr)")
        failures = []  # the first to fail often takes others with it: all that are known are shown
        for rank in (rank for rank in waiting if pipes[rank] in ready):
            try:
                succeeded, answer = pickle.loads(pipes[rank].recv_bytes())
            except EOFError:
                succeeded, answer = False, "died without a word"
            if succeeded:
                results[rank] = answer
            else:
                failures.append(f"rank {rank} of {len(pipes)}: {answer}")
        if failures:
            raise RankFailedError("\n\n".join(failures))
    return [results[rank] for rank in range(len(pipes))]


def _run_rank(
    job: bytes, rank: int, world_size: int, folder: str, environment: dict[str, str], timeout: float, send: Any
) -> None:
    faulthandler.dump_traceback_later(timeout)
    loopback = "lo0" if platform.system() == "Darwin" else "lo"
    os.environ.clear()  # the fork server has the environment of the first test that started it
    os.environ.update({"GLOO_SOCKET_IFNAME": loopback, **environment})
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size)
    )
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=(Path(folder) / "store").as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout),
        )
        function, args = pickle.loads(job)
        answer = pickle.dumps((True, function(*args)))
        dist.barrier()  # nobody leaves while another still talks to it
        dist.destroy_process_group()
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    send.send_bytes(answer)
