"""What the launch files start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from tests.helpers.runs import tiny_settings, write_pairs

PROJECT = Path(__file__).parent.parent
LAUNCH = sorted(
    path for path in (PROJECT / "launch").glob("*.yaml") if path.stem != "hardware"
)  # what check reckons with

RANKS = """
import os
from embedtrain.commands.common import join_ranks
from embedtrain import distributed
join_ranks()
os.write(1, f"ranks {distributed.gather_objects(distributed.rank())};".encode())  # one write: the ranks share a pipe
distributed.shutdown()
"""


def launch(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(PROJECT / "launch" / "cpu_2.yaml"),
    ]
    return subprocess.run(
        [*command, str(script), *words],
        env={
            **environment,
            "OMP_NUM_THREADS": "1",
            **({"ACCELERATE_USE_CPU": "true"} if torch.cuda.is_available() else {}),
        },
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("path", LAUNCH, ids=[path.name for path in LAUNCH])
def test_a_launch_file_is_read_and_says_how_it_is_used(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (config.num_processes, config.num_machines) == (said["num_processes"], said["num_machines"])
    assert f"accelerate launch --config_file launch/{path.name}" in path.read_text(encoding="utf-8")


def test_cpu_2_starts_two_ranks_that_know_of_each_other(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS, encoding="utf-8")
    done = launch(script)
    assert done.stdout.count("ranks [0, 1]") == 2, done.stderr


def test_a_mistake_is_told_once_by_two_ranks() -> None:
    done = launch(PROJECT / "train.py", "recipe=nope")
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("error: recipe=nope") == 1


def test_two_ranks_that_share_out_the_weights_end_in_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under launch/fsdp_8gpu.yaml, with evaluations before, between and after."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    rows = write_pairs(tmp_path / "dev.jsonl", 8)
    evaluation = ["evaluation=held_out", "source@evaluation.evaluators.held_out.pairs=jsonl"]
    settings = [*tiny_settings(tmp_path), *evaluation, f"evaluation.evaluators.held_out.pairs.path={rows}"]
    done = launch(PROJECT / "train.py", *settings, "training.evaluate_every=3")
    assert done.returncode == 0, done.stderr
    assert "sharded: 2 ranks hold" in done.stdout + done.stderr
    model = SentenceTransformer(str(tmp_path / "run" / "model"))
    assert model.encode(["where is the red stone"]).shape == (1, 32)
