from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedtrain import log
from embedtrain.config.compose import compose_config, load_saved
from embedtrain.config.difference import differences
from embedtrain.errors import ConfigError
from embedtrain.run import Run, standing
from tests.helpers.ranks import run_ranks


@pytest.fixture(autouse=True)
def _quiet():
    yield
    log.stop()


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return compose_config(
        ["run.name=r", f"run.dir={tmp_path}/r", "backbone.name=x", "training.global_batch_size=8"]
    ).config


def with_checkpoint(config: dict[str, Any]) -> Path:
    """A run that was started and then stopped after its first checkpoint."""
    run = Run.start(config, ["run.name=r"], {"loss": "infonce"})
    (run.dir / "checkpoints" / "step_00000010").mkdir(parents=True)
    assert run._lock is not None
    run._lock.close()
    return run.dir


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    node = config
    *parents, last = key.split(".")
    for name in parents:
        node = node[name]
    node[last] = value
    return config


def test_a_new_run_writes_down_what_it_is(config: dict[str, Any]) -> None:
    run = Run.start(config, ["run.name=r", "loss=infonce"], {"loss": "infonce"})
    assert load_saved(run.dir / "config.yaml") == config
    assert (run.dir / "overrides.txt").read_text() == "run.name=r\nloss=infonce\n"
    environment = json.loads((run.dir / "environment.json").read_text())
    assert environment["choices"] == {"loss": "infonce"}
    assert environment["world_size"] == 1
    assert environment["versions"]["torch"]
    assert set(environment["git"]) == {"commit", "dirty"} or environment["git"] is None
    assert not run.resumed


def test_log_lines_go_to_the_console_and_to_log_txt(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.start(config)
    logging.getLogger("embedtrain").info("hello")
    logging.getLogger("embedtrain.deep.inside").warning("careful")
    assert capsys.readouterr().out == "hello\nwarning: careful\n"
    written = (run.dir / "log.txt").read_text()
    assert "INFO    hello" in written
    assert "WARNING careful" in written


def test_the_same_config_resumes_where_there_is_a_checkpoint(config: dict[str, Any]) -> None:
    with_checkpoint(config)
    run = Run.start(config)
    assert run.resumed
    previous = json.loads((run.dir / "environment.json").read_text())["previous"]
    assert len(previous) == 1
    assert previous[0]["choices"] == {"loss": "infonce"}


def test_a_start_that_left_no_checkpoint_is_started_again(config: dict[str, Any]) -> None:
    run = Run.start(config)
    (run.dir / "metrics.jsonl").write_text("{}\n")
    run._lock.close()  # type: ignore[union-attr]
    again = Run.start(changed(config, "run.seed", 5))
    assert not again.resumed
    assert not (again.dir / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("run.seed", 3, "run.seed: 0 then, 3 now"),
        ("loss.temperature", 0.5, "loss.temperature: 0.05 then, 0.5 now"),
        ("training.global_batch_size", 16, "training.global_batch_size: 8 then, 16 now"),
        ("backbone.name", "y", "backbone.name: x then, y now"),
        ("optim.learning_rate", 1.0, "optim.learning_rate: 2e-05 then, 1.0 now"),
        ("data.sources", {"s": {"path": "p"}}, "data.sources.s.path: (not there) then, p now"),
        ("training.max_steps", 7, "training.max_steps: null then, 7 now"),
    ],
)
def test_a_change_of_the_result_is_refused_with_old_and_new(
    config: dict[str, Any], key: str, value: Any, line: str
) -> None:
    directory = with_checkpoint(config)
    with pytest.raises(ConfigError) as caught:
        Run.start(changed(config, key, value))
    assert f"{directory} holds a run with other settings" in str(caught.value)
    assert line in str(caught.value)
    assert "or start a new run with another run.name" in str(caught.value)
    assert load_saved(directory / "config.yaml") == config  # nothing was written


def test_a_change_that_leaves_the_result_is_noted(config: dict[str, Any]) -> None:
    with_checkpoint(config)
    run = Run.start(changed(changed(config, "training.log_every", 3), "trackers", {"w": {"_target_": "t"}}))
    assert run.resumed
    assert run.notes == ("trackers.w._target_: (not there) then, t now", "training.log_every: 10 then, 3 now")


def test_another_number_of_ranks_is_refused_only_where_it_changes_the_batch(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_checkpoint(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert standing(config).resumed
    own = changed(changed(config, "training.global_batch_size", None), "training.per_device_batch_size", 4)
    own = changed(own, "run.dir", config["run"]["dir"] + "2")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with_checkpoint(own)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="number of ranks: 1 then, 2 now, so a step would have 8 queries and not 4"):
        standing(own)


def test_never_refuses_a_used_directory_and_must_a_new_one(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="holds no run to resume"):
        standing(changed(config, "run.resume", "must"))
    directory = with_checkpoint(config)
    with pytest.raises(ConfigError, match=r"holds a run already\. Choose another run\.name"):
        standing(changed(config, "run.resume", "never"))
    (directory / "checkpoints" / "step_00000010").rmdir()
    with pytest.raises(ConfigError, match="has no checkpoint to resume from"):
        standing(changed(config, "run.resume", "must"))


def test_a_directory_of_something_else_is_left_alone(config: dict[str, Any]) -> None:
    directory = Path(config["run"]["dir"])
    directory.mkdir()
    (directory / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"is not empty and holds no run \(no config.yaml; it has thesis.txt\)"):
        Run.start(config)
    assert [path.name for path in directory.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_directory_is_named(config: dict[str, Any]) -> None:
    Path(config["run"]["dir"]).write_text("x")
    with pytest.raises(ConfigError, match=r"is a file\. Choose another run\.name"):
        Run.start(config)


def test_two_processes_do_not_share_a_directory(config: dict[str, Any]) -> None:
    run = Run.start(config)
    code = (
        "import json, sys; from embedtrain.run import Run; from embedtrain.errors import ConfigError\n"
        "try: Run.start(json.loads(sys.argv[1]))\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(config)], capture_output=True, text=True, check=True)
    assert f"another process is training in {run.dir}" in done.stdout


def test_a_finished_run_is_known_as_such(config: dict[str, Any]) -> None:
    run = Run.start(config)
    run.finish()
    again = Run.start(config)
    assert again.finished
    with pytest.raises(ConfigError, match=r"run\.seed: 0 then, 1 now"):
        standing(changed(config, "run.seed", 1))


def _start(config: dict[str, Any]) -> tuple[str, int]:
    from embedtrain import distributed

    mine = changed(config, "run.name", f"r{distributed.rank()}")  # what a clock or a free name could do
    mine["run"]["dir"] += f"{distributed.rank()}"
    run = Run.start(mine)
    return str(run.dir), run.config["run"]["name"]


def _refused(config: dict[str, Any]) -> str:
    try:
        Run.start(config)
    except ConfigError as error:
        return str(error)
    return "started"


def test_all_ranks_have_the_directory_and_the_config_of_rank_0(config: dict[str, Any]) -> None:
    directory = config["run"]["dir"]
    assert run_ranks(_start, 2, config) == [(f"{directory}0", "r0")] * 2
    assert not Path(f"{directory}1").exists()


def test_all_ranks_are_refused_together(config: dict[str, Any]) -> None:
    with_checkpoint(config)
    first, second = run_ranks(_refused, 2, changed(config, "run.seed", 9))
    assert first == second
    assert "run.seed: 0 then, 9 now" in first


def test_differences_are_sorted_by_key_and_by_kind() -> None:
    old = {"run": {"seed": 0}, "training": {"log_every": 1}, "evaluation": {"primary": None}, "trackers": {}}
    new = {"run": {"seed": 1}, "training": {"log_every": 2}, "evaluation": {"primary": "a/b"}, "trackers": {}}
    assert differences(old, new) == (
        ["run.seed: 0 then, 1 now"],
        ["evaluation.primary: null then, a/b now", "training.log_every: 1 then, 2 now"],
    )
