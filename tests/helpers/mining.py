"""Mining beside the training without seconds of imports: a fork in place of a new interpreter. What runs in it is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import IO, Any

import pytest

from embedtrain import distributed
from embedtrain.training import mine_beside, mining_process


class Fork:
    """As much of `subprocess.Popen` as `MiningProcess` asks."""

    def __init__(self, command: Sequence[str], *, stdout: IO[str], env: Mapping[str, str], **_: Any) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            in_child(lambda: mine_beside.main(command[-1]), out=stdout.fileno(), env=env)

    def poll(self) -> int | None:
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> None:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def in_child(work: Callable[[], Any], *, out: int, env: Mapping[str, str]) -> None:
    """What a new process would be: no handler and no rank of its parent; its files it has, and locks on them. Ends it."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.environ.clear()
        os.environ.update(env)
        distributed.is_distributed = lambda: False
        os.nice = lambda _: 0  # a test waits for it
        work()
        code = 0
    except SystemExit as end:
        sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mining beside the training, in a fork."""
    monkeypatch.setattr(mining_process, "subprocess", QUICK)


QUICK = SimpleNamespace(Popen=Fork, STDOUT=subprocess.STDOUT, DEVNULL=subprocess.DEVNULL)
