"""Runs that mine are killed or stopped: whatever the moment, what they see afterwards is what they would have seen."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embedtrain.data.mined import MinedNegatives
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.training import mine_beside, mining_process
from embedtrain.training.checkpoint import find_checkpoint
from embedtrain.training.mining_process import MiningProcess
from embedtrain.training.trainer import Terminated, Trainer
from tests.helpers.mining import QUICK, forked, in_child
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_settings, tiny_trainer, train_tiny

__all__ = ["forked"]

MINE = (
    "miner=top_k",
    "miner.num_negatives=2",
    "miner.depth=12",
    "miner.near_duplicates=null",
    "optim.learning_rate=3e-2",
)
BESIDE = (*MINE, "refresh@training.refresh=asynchronous", "training.refresh.every=2", "training.max_steps=7")
SHORT_LAG = (*BESIDE, "training.refresh.every=3", "training.refresh.lag=1")
HERE = (*MINE, "refresh@training.refresh=periodic", "training.refresh.every=2", "training.max_steps=7")
TRIGGERED = (
    *MINE,
    "miner.num_negatives=8",
    "refresh@training.refresh=triggered",
    "training.refresh.every=2",
    "training.refresh.num_negatives=2",
    "training.refresh.factor=1.0",
    "training.refresh.ceiling=2.0",
    "training.max_steps=14",
    "optim.learning_rate=3e-3",
)


def config(folder: Path, settings: tuple[str, ...], name: str, *more: str) -> dict[str, Any]:
    return tiny_config(folder, *settings, f"miner.store={folder / 'embeddings'}", *more, name=name)


def told(folder: Path, name: str) -> dict[tuple[int, str], float]:
    """What telemetry says of negatives, by step and key; but for how long anything took."""
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    found = [
        ((line["step"], key), value)
        for line in lines
        for key, value in line.items()
        if key.startswith("negatives/") and "seconds" not in key
    ]
    assert len(dict(found)) == len(found), "each once"
    return dict(found)


# ------------------------------------------------------------------------------------------------------------ kills


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def whole(config: dict[str, Any], step: int) -> bool:
    return (Path(config["run"]["dir"]) / "negatives" / f"step_{step:08d}" / "manifest.json").is_file()


def before_work(config: dict[str, Any]) -> None:
    """The weights of step 2 are kept, and nothing mines by them yet."""
    MiningProcess.begin = lambda *_: die()  # type: ignore[method-assign]


def at_work(config: dict[str, Any]) -> None:
    """The negatives of step 2 are being mined, and would be for ever."""
    mine_beside.write_version = lambda *_, **__: time.sleep(1000)
    at_step(3, die)


def when_found(config: dict[str, Any]) -> None:
    """The negatives of step 2 are there, and are not taken up before step 4."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not whole(config, 2) and time.monotonic() < end:
            time.sleep(0.01)
        die()

    at_step(3, wait)


def when_taken_up(config: dict[str, Any]) -> None:
    """Step 4 uses the negatives of step 2, and those of its own are being mined."""
    at_step(4, die)


def at_step(number: int, act: Callable[[], None]) -> None:
    update = Trainer._update

    def watched(self: Trainer, batches: Any, step: int) -> Any:
        if step == number:
            act()
        return update(self, batches, step)

    Trainer._update = watched  # type: ignore[method-assign, assignment]


def train_and_die(config: dict[str, Any], moment: Callable[[dict[str, Any]], None], folder: Path) -> None:
    """In a process of its own, which is then gone, and what it began too."""
    child = os.fork()
    if child == 0:
        out = (folder / "killed.log").open("w")
        moment(config)
        in_child(lambda: train_tiny(config), out=out.fileno(), env=os.environ.copy())
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (folder / "killed.log").read_text()


def wait_for_orphans(run: Path) -> None:
    """What a killed run has begun ends by itself. A fork has the lock of the directory as long as it lives."""
    end = time.monotonic() + 60
    with (run / ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                assert time.monotonic() < end, "it goes on without its run"
                time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[tuple[str, ...]], tuple[Path, torch.Tensor, list[Any]]]:
    """Runs that nobody stopped, each made once."""
    folder = tmp_path_factory.mktemp("straight")
    made: dict[tuple[str, ...], Any] = {}

    def of(settings: tuple[str, ...]) -> Any:
        if settings not in made:
            made[settings] = train_tiny(config(folder, settings, f"run{len(made)}"))[1:]
        return folder / f"run{list(made).index(settings)}", *made[settings]

    return of


@pytest.mark.parametrize("save_every", [1, 2, 100])
@pytest.mark.parametrize(
    "moment", [before_work, at_work, when_found, when_taken_up], ids=lambda moment: moment.__name__
)
def test_a_run_killed_at_any_moment_of_mining_goes_on_as_if_nothing_had_been(
    tmp_path: Path, straight: Any, forked: None, moment: Any, save_every: int
) -> None:
    folder, expected, seen = straight(BESIDE)
    settings = config(tmp_path, BESIDE, "killed", f"training.save_every={save_every}")
    train_and_die(settings, moment, tmp_path)
    saved = find_checkpoint(tmp_path / "killed" / "checkpoints")
    done = 0 if saved is None else saved.step
    assert done == {
        1: {"before_work": 2, "at_work": 3, "when_found": 3, "when_taken_up": 4}[moment.__name__],
        100: 0,
    }.get(save_every, done)
    wait_for_orphans(tmp_path / "killed")
    total, found, rest = train_tiny(settings)
    assert total == 7
    assert rest == seen[done:]
    assert torch.equal(found, expected)
    assert told(tmp_path, "killed") == told(folder.parent, folder.name)


def test_each_step_uses_the_version_that_the_formula_says(tmp_path: Path, straight: Any, forked: None) -> None:
    for settings, every, lag in ((BESIDE, 2, 2), (SHORT_LAG, 3, 1), (HERE, 2, 0)):
        folder, _, seen = straight(settings)
        used = []
        for step, (batch,) in enumerate(seen):
            version = max(0, (step - lag) // every * every)
            used.append(version)
            assert batch == expected_batch(folder, batch, version)
        assert len(set(used)) > 1
        assert [told(folder.parent, folder.name)[step + 1, "negatives/age"] for step in range(7)] == [
            step - version for step, version in enumerate(used)
        ]
        assert not list((folder / "negatives").glob("*.mining")), "work that is over leaves nothing behind"


def expected_batch(folder: Path, batch: list[int], version: int) -> list[int]:
    """The batch of these positives, each with its negatives of a version, from a loop over the rows."""
    from embedtrain.data.sources import JsonLines
    from embedtrain.types import text_id

    mined = MinedNegatives(folder / "negatives" / f"step_{version:08d}")
    of = {
        text_id(row.positives[0]): [text_id(text) for text in mined.extend(row, "pairs", number).negatives]
        for number, row in enumerate(JsonLines(path=str(folder.parent / "pairs.jsonl")))
    }
    return [document for place in range(0, len(batch), 3) for document in (batch[place], *of[batch[place]])]


def test_what_is_begun_by_a_run_that_is_gone_ends_before_it_mines(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"parent": os.getpid() + 1, "version": str(tmp_path / "version")}))
    mine, mine_beside.mine = mine_beside.mine, lambda job: time.sleep(1000)
    child = os.fork()
    if child == 0:
        in_child(lambda: mine_beside.main(str(job)), out=(tmp_path / "log").open("w").fileno(), env={})
    mine_beside.mine = mine
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


# -------------------------------------------------------------------------------------------------------- two ranks


def train_forked(folder: str, settings: tuple[str, ...], name: str) -> tuple[torch.Tensor, list[Any]]:
    mining_process.subprocess = QUICK  # type: ignore[assignment]
    _, end, seen = train_tiny(config(Path(folder), settings, name))
    return end, seen


def test_two_ranks_use_what_the_process_of_one_has_found(tmp_path: Path, forked: None) -> None:
    tiny_settings(tmp_path)  # makes the model once for both
    plain = ("backbone.dropout=0", "optim.eps=0.01")
    (first, its), (second, others) = run_ranks(train_forked, 2, str(tmp_path), (*BESIDE, *plain), "ranks")
    assert torch.equal(first, second)
    for step, ((own,), (other,)) in enumerate(zip(its, others, strict=True)):
        batch = own + other
        assert batch == expected_batch(tmp_path / "ranks", batch, max(0, (step - 2) // 2 * 2))


def fail_forked(folder: str) -> str:
    mining_process.subprocess = QUICK  # type: ignore[assignment]
    trainer = tiny_trainer(config(Path(folder), BESIDE, "failing"))
    assert trainer.negatives is not None
    if trainer.negatives.process is not None:
        trainer.negatives.process.settings = {"run": {"seed": "none"}}
    with pytest.raises(TrainingError) as failure:
        trainer.fit()
    return str(failure.value)


def lose_weights(folder: str) -> str:
    mining_process.subprocess = QUICK  # type: ignore[assignment]
    settings = config(Path(folder), BESIDE, "losing", "training.save_every=1")
    train_tiny(settings, stop_after=3)
    for kept in (Path(folder) / "losing" / "negatives").glob("*.mining/weights.safetensors"):
        kept.unlink(missing_ok=True)
    with pytest.raises(TrainingError) as failure:
        train_tiny(settings)
    return str(failure.value)


def test_what_fails_on_rank_0_ends_all_ranks_with_its_words(tmp_path: Path) -> None:
    tiny_settings(tmp_path)
    first, second = run_ranks(fail_forked, 2, str(tmp_path))
    assert first == second
    assert "negatives of step 2 ended with code 1" in first
    assert "Error" in first


def test_weights_that_are_gone_are_missed_on_all_ranks(tmp_path: Path, forked: None) -> None:
    settings = config(tmp_path, BESIDE, "run")
    train_tiny(settings, stop_after=3)
    (kept,) = (tmp_path / "run" / "negatives").glob("*.mining/weights.safetensors")
    kept.unlink()
    for message in run_ranks(lose_weights, 2, str(tmp_path)):
        assert "Resume from a checkpoint" in message
    with pytest.raises(TrainingError, match="Resume from a checkpoint"):
        train_tiny(settings)


# ------------------------------------------------------------------------------------------- starts, stops, settings


def test_what_a_start_without_a_checkpoint_has_mined_is_not_used_by_another(tmp_path: Path) -> None:
    """Its settings may have been others, and nothing forbids that."""
    trainer = tiny_trainer(config(tmp_path, HERE, "run", "miner.num_negatives=1"))
    trainer.total_steps = 3
    trainer.fit()
    del trainer  # lets go of the directory
    train_tiny(config(tmp_path, HERE, "run"))
    for version in (tmp_path / "run" / "negatives").iterdir():
        assert MinedNegatives(version).numbers("pairs").shape[1] == 2


def test_another_corpus_under_the_same_name_is_not_resumed_on(tmp_path: Path) -> None:
    corpus = tmp_path / "documents.txt"
    corpus.write_text("".join(f"a document about the number {n}\n" for n in range(40)))
    settings = config(tmp_path, (*MINE, f"miner.corpus={corpus}"), "run")
    train_tiny(settings, stop_after=2)
    before = corpus.read_bytes()
    corpus.write_bytes(before + b"one more\n")
    with pytest.raises(
        TrainingError, match=r"the file miner\.corpus=.*documents\.txt is not what this run was started with"
    ):
        train_tiny(settings)
    corpus.write_bytes(before)
    assert train_tiny(settings)[0] == 6


def test_other_settings_of_the_miner_are_not_resumed_on(tmp_path: Path) -> None:
    train_tiny(config(tmp_path, HERE, "run"), stop_after=2)
    with pytest.raises(ConfigError) as refused:
        tiny_trainer(config(tmp_path, HERE, "run", "miner.num_negatives=1", "training.refresh.every=3"))
    assert "miner.num_negatives: 2 then, 1 now" in str(refused.value)
    assert "training.refresh.every: 2 then, 3 now" in str(refused.value)
    tiny_trainer(config(tmp_path, HERE, "run", "training.refresh.threads=2", "miner.store=elsewhere"))  # these may


def test_a_run_that_waits_stops_when_it_is_told_to(
    tmp_path: Path, straight: Any, forked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected, seen = straight(BESIDE)
    settings = config(tmp_path, BESIDE, "run")
    trainer = tiny_trainer(settings)
    assert trainer.negatives is not None
    found = trainer.negatives._is_over

    def terminate(version: int) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return found(version)

    monkeypatch.setattr(trainer.negatives, "_is_over", terminate)
    monkeypatch.setattr(mine_beside, "write_version", lambda *_, **__: time.sleep(1000))
    with pytest.raises(Terminated, match="stopped after 4 of 7 steps"):
        trainer.fit()
    trainer.negatives.close()
    del trainer
    monkeypatch.undo()
    monkeypatch.setattr(mining_process, "subprocess", QUICK)
    total, resumed, rest = train_tiny(settings)
    assert (total, rest) == (7, seen[4:])
    assert torch.equal(resumed, expected)


# ------------------------------------------------------------------------------------------- together, and triggered


@pytest.mark.parametrize(("settings", "stop"), [(HERE, 3), (HERE, 4), (TRIGGERED, 3), (TRIGGERED, 4), (TRIGGERED, 9)])
def test_a_stopped_run_uses_the_same_negatives_and_ends_with_the_same_weights(
    tmp_path: Path, straight: Any, settings: tuple[str, ...], stop: int
) -> None:
    folder, expected, seen = straight(settings)
    train_tiny(config(tmp_path, settings, "run"), stop_after=stop)
    _, resumed, rest = train_tiny(config(tmp_path, settings, "run"))
    assert rest == seen[stop:]
    assert torch.equal(resumed, expected)
    assert told(tmp_path, "run") == told(folder.parent, folder.name)


def test_telemetry_of_rows_that_move_on_is_that_of_the_batches(tmp_path: Path, straight: Any) -> None:
    """Seen from outside alone: a row whose negatives have become others has moved on."""
    folder, _, seen = straight(TRIGGERED)
    facts = told(folder.parent, folder.name)
    moved = {step: value for (step, key), value in facts.items() if key == "negatives/moved_rows"}
    assert moved.keys() == {3, 5, 7, 9, 11, 13}
    assert sum(moved.values()) > 0
    windows: dict[int, list[tuple[int, ...]]] = {}
    for (batch,) in seen:
        for place in range(0, len(batch), 3):
            windows.setdefault(batch[place], []).append(tuple(batch[place + 1 : place + 3]))
    changes = sum(len(set(own)) - 1 for own in windows.values())
    assert 0 < changes <= sum(moved.values())  # a row may move on and not be seen again
    for step, rows in moved.items():
        assert facts[step, "negatives/turnover"] == pytest.approx(rows / 26)  # all lists are long enough
        assert facts[step, "negatives/short_rows"] == 0
