"""What a user gets wrong, end to end through the command: what is said, the exit code, and what is still there afterwards."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from accelerate.state import AcceleratorState

from embedtrain import cli, log
from embedtrain.tensor_file import write_tensors
from embedtrain.training import checkpoint
from embedtrain.training.step import ContrastiveStep, StepResult
from embedtrain.types import TokenBatch
from tests.helpers.runs import tiny_config, tiny_settings, train_tiny

ROW = b'{"query": "where is it", "positive": "over there"}\n'


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """(exit code, message) of a `train` that must fail, without a traceback."""

    def ask(*overrides: str) -> tuple[int, str]:
        AcceleratorState._reset_state()  # of the run before in this process
        words = tiny_settings(tmp_path, *overrides)
        capsys.readouterr()
        code = cli.main(["train", *words])
        printed = capsys.readouterr()
        assert code != 0
        assert "Traceback" not in printed.out + printed.err
        assert printed.err.startswith("error: ")
        return code, printed.err

    yield ask
    log.stop()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.max_step=3"], "training.max_step: training has no key 'max_step'. Did you mean 'max_steps'?"),
        (["optim.learning_rate=fast"], "optim.learning_rate: expected a number, got 'fast'."),
        (["data.path=nowhere.jsonl"], "data.path: there is no file or folder /.*/nowhere.jsonl."),
        (
            ["training.global_batch_size=1", "data.num_negatives=0"],
            "each query would see 1 candidate, its own positive, and the loss would be 0. At least 2 are needed: raise",
        ),
        (
            ["loss=matryoshka"],  # whose dims are those of a larger model
            r"loss.dims: \[384, 256, 128, 64\] above the embedding size 32. Use dims <= 32",
        ),
    ],
    ids=["unknown key", "wrong type", "missing file", "one candidate", "too many dimensions"],
)
def test_a_config_that_cannot_run_is_refused_by_its_key(
    overrides: list[str], expected: str, refusal: Callable[..., tuple[int, str]]
) -> None:
    code, said = refusal(*overrides)
    assert code == 2
    assert re.search(expected, said, re.DOTALL)


@pytest.mark.parametrize(
    ("content", "overrides", "expected"),
    [
        (b"", [], r"bad\.jsonl is empty. Expected"),
        (
            ROW + b'{"query": "and this"}\n',
            [],
            r"bad\.jsonl, line 2: the columns are 'query'; none is known to be the positives. Say which",
        ),
        (
            ROW + b'{"query": "and this", "positive": ""}\n',
            [],
            r"bad\.jsonl:2: positives\[0\] is empty. Remove it, or the row.",
        ),
        (ROW + b'{"query": "caf\xe9", "positive": "x"}\n', [], r"bad\.jsonl, line 2: byte 14 .* is not UTF-8.*Convert"),
        (
            ROW,
            ["data.sources.pairs.columns={query: question, positives: positive}"],
            "there is no column 'question'. The columns are 'query', 'positive'",
        ),
    ],
    ids=["empty", "no positive", "empty positive", "not UTF-8", "no such column"],
)
def test_data_that_cannot_be_trained_on_is_refused_by_file_and_row(
    content: bytes, overrides: list[str], expected: str, tmp_path: Path, refusal: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    code, said = refusal(f"data.path={tmp_path / 'bad.jsonl'}", *overrides)
    assert code == 1
    assert re.search(expected, said, re.DOTALL), said


def test_rows_without_any_negative_are_refused_at_the_first_step(refusal: Callable[..., tuple[int, str]]) -> None:
    """The config alone cannot tell: null takes as many hard negatives as a row has."""
    code, said = refusal(
        "training.global_batch_size=1", "data.sources.pairs.columns={query: query, positives: positive}"
    )
    assert code == 1
    assert "every query of the first step has its positive and no negative, so the loss would be 0" in said
    assert "training.global_batch_size" in said


# ---------------------------------------------------------------------- what was saved stays good


def goes_on(folder: Path, *, after: int) -> None:
    """The run in `folder` resumes `after` so many steps and ends as one to which nothing happened."""
    steps, found, seen = train_tiny(tiny_config(folder, "training.save_every=2"))
    assert steps - len(seen) == after
    assert torch.equal(found, train_tiny(tiny_config(folder, "training.save_every=2", name="undisturbed"))[1])


def test_a_loss_that_is_no_number_names_step_source_and_row(
    tmp_path: Path, refusal: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ContrastiveStep, "__call__", _poisoned_in_step_3(ContrastiveStep.__call__))
        code, said = refusal("training.save_every=2")
    assert code == 1
    assert re.search(r"step 3: the loss is not finite \(sources in the batch: pairs; .*pairs\.jsonl:\d+", said)
    assert "No weight was changed by this step. A lower optim.learning_rate" in said
    goes_on(tmp_path, after=2)


def _poisoned_in_step_3(call: Callable[..., StepResult]) -> Callable[..., StepResult]:
    def poisoned(self: ContrastiveStep, micro_batches: Sequence[TokenBatch], step: int) -> StepResult:
        if step == 3:
            self.parameters[0].data.fill_(float("nan"))
        return call(self, micro_batches, step)

    return poisoned


def test_a_full_disk_names_the_checkpoint_and_those_that_are_intact(
    tmp_path: Path, refusal: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: BinaryIO, *written: Any) -> None:
        if "step_00000004" in file.name:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_tensors(file, *written)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_tensors", full)
        code, said = refusal("training.save_every=2")
    assert code == 1
    assert re.search(r"step_00000004 could not be written: the disk is full: .* needed, .* free", said)
    assert "Intact checkpoints: step_00000002. Free some space" in said
    goes_on(tmp_path, after=2)


def test_a_run_whose_only_checkpoint_is_cut_short_does_not_silently_start_again(
    tmp_path: Path, refusal: Callable[..., tuple[int, str]]
) -> None:
    train_tiny(tiny_config(tmp_path, "training.save_every=2"), stop_after=2)
    file = tmp_path / "run" / "checkpoints" / "step_00000002" / "optimizer.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    code, said = refusal("training.save_every=2")
    assert code == 1
    assert re.search(r"no checkpoint is whole \(step_00000002: optimizer.safetensors is not as it was written", said)
    assert "Restore one from a copy, or start again in a new directory with run.name=" in said
    file.write_bytes(whole)
    goes_on(tmp_path, after=2)


def test_a_changed_setting_is_refused_with_both_values_and_the_old_one_goes_on(
    tmp_path: Path, refusal: Callable[..., tuple[int, str]]
) -> None:
    train_tiny(tiny_config(tmp_path, "training.save_every=2"), stop_after=2)
    code, said = refusal("training.save_every=2", "loss.temperature=0.1")
    assert code == 2
    assert "loss.temperature: 0.05 then, 0.1 now" in said
    assert "Put the old values back to resume it, or start a new run with another run.name." in said
    goes_on(tmp_path, after=2)


# ------------------------------------------------------------------------- as a process of its own


@pytest.mark.parametrize(("override", "code"), [("optm.eps=1", 2), ("data.path={folder}/bad.jsonl", 1)])
def test_a_process_says_one_error_and_ends_with_its_code(override: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"")
    words = tiny_settings(tmp_path, override.format(folder=tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "embedtrain", "train", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
