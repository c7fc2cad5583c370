"""A run is a function of its config and its seed: also of one that was stopped, killed, or moved to other ranks."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from embedtrain.errors import ConfigError, TrainingError
from embedtrain.training.checkpoint import find_checkpoint
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny, write_pairs

DROPOUT = "backbone.dropout=0.2"
NO_DROPOUT = "backbone.dropout=0.0"


@pytest.mark.parametrize("stop_after", [1, 4, 5])  # within the first epoch, and at two places of the second
@pytest.mark.parametrize("world", [1, 2])
def test_a_stopped_run_ends_with_the_same_batches_and_the_same_weights_to_the_bit(tmp_path, stop_after, world):
    straight = run_ranks(train_tiny, world, tiny_config(tmp_path, DROPOUT, name="straight"))
    config = tiny_config(tmp_path, DROPOUT, name="stopped")
    first = run_ranks(stopped, world, config, stop_after)
    rest = run_ranks(train_tiny, world, config)
    for (steps, expected, batches), (done, _, before), (total, found, after) in zip(straight, first, rest, strict=True):
        assert (done, total) == (stop_after, steps)
        assert before + after == batches
        assert torch.equal(found, expected)


def stopped(config, stop_after):
    return train_tiny(config, stop_after=stop_after)


def test_dropout_is_on_in_the_tests_above(tmp_path):
    with_dropout = train_tiny(tiny_config(tmp_path, DROPOUT, name="with"), stop_after=1)[1]
    assert not torch.equal(with_dropout, train_tiny(tiny_config(tmp_path, NO_DROPOUT, name="without"), stop_after=1)[1])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4)])
def test_other_ranks_go_on_with_the_same_batches_and_weights_equal_to_rounding(tmp_path, before, after):
    """Without dropout, whose masks belong to ranks. The global batches are the same, cut in other slices.

    A larger eps, because Adam divides a gradient by its own size: the biases of the keys have a true gradient of zero,
    and with 1e-8 their rounding errors would become whole updates.
    """
    _, expected, batches = train_tiny(tiny_config(tmp_path, NO_DROPOUT, "optim.eps=1e-3", name="straight"))
    config = tiny_config(tmp_path, NO_DROPOUT, "optim.eps=1e-3", name="moved")
    run_ranks(stopped, before, config, 4)
    rest = run_ranks(train_tiny, after, config)
    for _, found, _ in rest:
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    together = [
        [[id for rank in rest for id in rank[2][step][micro]] for micro in range(len(rest[0][2][step]))]
        for step in range(len(rest[0][2]))
    ]
    assert together == batches[4:]


def test_the_same_config_gives_the_same_weights_and_another_seed_others(tmp_path):
    first = train_tiny(tiny_config(tmp_path, name="a"))[1]
    assert torch.equal(train_tiny(tiny_config(tmp_path, name="b"))[1], first)
    assert not torch.equal(train_tiny(tiny_config(tmp_path, "run.seed=1", name="c"))[1], first)


def test_workers_and_cached_chunks_change_nothing(tmp_path):
    expected = train_tiny(tiny_config(tmp_path, name="a"))[1]
    assert torch.equal(train_tiny(tiny_config(tmp_path, "data.num_workers=2", name="b"))[1], expected)
    assert torch.equal(train_tiny(tiny_config(tmp_path, "training.cached_share=1.0", name="c"))[1], expected)


def test_metrics_hold_each_step_once_after_a_resume(tmp_path):
    config = tiny_config(tmp_path)
    train_tiny(config, stop_after=2)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "train/loss": 1.0}\n{"step": 4, "tra')  # what a kill leaves
    train_tiny(config)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_changed_data_is_not_resumed_on(tmp_path):
    config = tiny_config(tmp_path)
    train_tiny(config, stop_after=2)
    write_pairs(tmp_path / "pairs.jsonl", 27)
    with pytest.raises(TrainingError, match="the data is not what this run was started with"):
        train_tiny(config)


def test_a_changed_loss_is_not_resumed_on(tmp_path):
    train_tiny(tiny_config(tmp_path), stop_after=2)
    with pytest.raises(ConfigError, match=r"loss\.temperature: 0\.05 then, 0\.1 now"):
        tiny_trainer(tiny_config(tmp_path, "loss.temperature=0.1"))


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_more(tmp_path):
    _, expected, _ = train_tiny(tiny_config(tmp_path, DROPOUT, name="straight"))
    config = tiny_config(tmp_path, DROPOUT, "training.save_every=1", name="damaged")
    train_tiny(config, stop_after=4)
    newest = tmp_path / "damaged" / "checkpoints" / "step_00000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    steps, found, batches = train_tiny(config)
    assert (steps, len(batches)) == (6, 3)
    assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------- through the real command


def start_command(config_dir, *overrides: str) -> subprocess.Popen:
    tiny_config(config_dir)  # makes model and pairs
    command = [
        sys.executable, "-c", "import sys; from embedtrain.cli import train; sys.exit(train())",
        "data=pairs", f"data.path={config_dir / 'pairs.jsonl'}", f"backbone.name={config_dir / 'model'}",
        "training.global_batch_size=8", "training.max_steps=12", "training.save_every=2", "training.keep_checkpoints=0",
        "evaluation.before=false", "evaluation.after=false", "encoder.max_query_length=64", "encoder.max_document_length=64",
        DROPOUT, *overrides,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=config_dir, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip


def wait_for(path, process, timeout=120):
    end = time.time() + timeout
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < end, f"{path} did not appear"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_resumes_to_the_same_model(tmp_path, number):
    straight = start_command(tmp_path, "run.name=straight")
    said, _ = straight.communicate(timeout=200)
    assert straight.returncode == 0, said

    killed = start_command(tmp_path, "run.name=killed")
    wait_for(tmp_path / "runs" / "killed" / "checkpoints" / "step_00000004", killed)
    killed.send_signal(number)
    said, _ = killed.communicate(timeout=100)
    if number == signal.SIGTERM:
        assert killed.returncode == 143
        assert "and saved in" in said
    else:
        assert killed.returncode == -signal.SIGKILL
    assert find_checkpoint(tmp_path / "runs" / "killed" / "checkpoints").step < 12, (
        "it was stopped too late to prove anything"
    )

    again = start_command(tmp_path, "run.name=killed")
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert "resumed from" in said
    files = [
        tmp_path / "runs" / name / part
        for part in ("checkpoints/step_00000012/model.safetensors", "model/model.safetensors")
        for name in ("straight", "killed")
    ]
    for a, b in (files[:2], files[2:]):
        a, b = load_file(a), load_file(b)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
