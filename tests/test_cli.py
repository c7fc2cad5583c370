from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedtrain import cli, log
from embedtrain.errors import ConfigError, DataError
from embedtrain.run import Run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    log.stop()


@pytest.fixture
def good(tmp_path: Path) -> list[str]:
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "positives": ["p"], "negatives": ["n"]}\n', encoding="utf-8")
    return ["data=pairs", "data.path=pairs.jsonl", "backbone.name=x", "training.global_batch_size=2"]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Run], int]], None]:
    """Puts something cheaper in the place of training."""

    def install(body: Callable[[Run], int]) -> None:
        module = types.ModuleType("embedtrain.training.job")
        module.run_training = lambda config, run: body(run)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "embedtrain.training.job", module)

    return install


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["help"]])
def test_help_names_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {command} " in printed for command in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "trian: there is no such command. Did you mean 'train'?"),
        (["recipe=x"], "recipe=x: a command comes first, e.g. `embedtrain train recipe=x`."),
        (["train", "-m", "a=1,2"], "-m: a sweep inside a launch would run every trial in every rank"),
        (["train", "--multirun"], "--multirun: a sweep inside a launch"),
        (["train", "--local_rank=1"], "--local_rank: ranks come from the launcher's environment"),
        (["train", "--local-rank", "1"], "--local-rank: ranks come from the launcher's environment"),
        (["train", "--cfg", "job"], "--cfg: `embedtrain check recipe=...` prints the config"),
        (["train", "--learning_rate", "1"], "--learning_rate: there is no such flag. Settings are written key=value"),
        (["train", "--from-run"], "--from-run: expected a folder after it."),
        (["train", "--from-run=nowhere"], "nowhere/config.yaml: not found"),
        (["train", "--config-dir", "nowhere"], "there is no folder"),
        (["train", "recipe"], "recipe: expected key=value"),
        (["check", "world=0"], "world=0: expected the number of devices, at least 1."),
        (["check", "output=xml"], "output=xml: expected one of text, json."),
    ],
)
def test_a_wrong_command_line_is_answered_with_the_right_one(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_one_rank_of_a_machine_speaks_of_a_config_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert cli.train(["recipe=nope"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "8")  # the first of the second machine
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert cli.train(["recipe=nope"]) == 2
    assert capsys.readouterr().err.startswith("[rank 8] error: recipe=nope")


def test_recipes_are_listed_with_their_first_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert "quickstart\n    Fine-tune all-MiniLM-L6-v2" in printed
    assert "@package" not in printed


class TestTrain:
    def test_the_job_gets_the_config_and_a_started_run(self, good: list[str], job: Any) -> None:
        seen: list[Run] = []
        job(lambda run: seen.append(run) or 0)
        assert cli.train([*good, "run.name=a"]) == 0
        assert seen[0].dir == Path("runs/a")
        assert seen[0].config["run"]["name"] == "a"
        assert json.loads(Path("runs/a/environment.json").read_text())["finished"]
        assert Path("runs/a/overrides.txt").read_text().splitlines() == [*good, "run.name=a"]

    def test_a_finished_run_is_not_run_again(
        self, good: list[str], job: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls: list[Run] = []
        job(lambda run: calls.append(run) or 0)
        assert [cli.train(good), cli.train(good)] == [0, 0]
        assert len(calls) == 1
        assert "runs/unnamed is finished: there is nothing left to train." in capsys.readouterr().out

    def test_warnings_are_said_before_the_job(
        self, good: list[str], job: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job(lambda run: print("job") or 0)
        cli.train(good)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "run runs/unnamed"
        assert lines[1].startswith("warning: evaluation.evaluators: empty")
        assert lines[2] == "job"

    @pytest.mark.parametrize(("error", "code"), [(DataError("pairs.jsonl:3: bad"), 1), (ConfigError("x: bad"), 2)])
    def test_errors_of_the_job_are_told_without_a_traceback(
        self, error: Exception, code: int, good: list[str], job: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(run: Run) -> int:
            raise error

        job(fail)
        assert cli.train(good) == code
        assert capsys.readouterr().err == f"error: {error}\n"
        assert "finished" not in json.loads(Path("runs/unnamed/environment.json").read_text())

    def test_a_terminated_run_is_not_finished(self, good: list[str], job: Any) -> None:
        from embedtrain.training.trainer import Terminated

        def stop(run: Run) -> int:
            raise Terminated("stopped after 3 of 9 steps", 15)

        job(stop)
        assert cli.train(good) == 143
        assert "finished" not in json.loads(Path("runs/unnamed/environment.json").read_text())

    def test_a_run_is_repeated_from_its_directory(self, good: list[str], job: Any) -> None:
        seen: list[Run] = []
        job(lambda run: seen.append(run) or 0)
        cli.train([*good, "run.name=a"])
        assert cli.train(["--from-run", "runs/a", "loss.temperature=0.5"]) == 0
        assert seen[1].dir == Path("runs/a-2")
        assert seen[1].config["loss"] == seen[0].config["loss"] | {"temperature": 0.5}
