"""Runs that mine their hard negatives: which step sees which, whatever stops the run in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from embedtrain.data.mined import MinedNegatives
from embedtrain.data.sources import JsonLines
from embedtrain.errors import TrainingError
from embedtrain.types import text_id
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny

MINE = (
    "miner=top_k",
    "miner.num_negatives=2",
    "miner.depth=12",
    "miner.near_duplicates=null",
    "optim.learning_rate=3e-2",  # so that the weights of another step find other negatives
)
EVERY_2 = (*MINE, "refresh@training.refresh=periodic", "training.refresh.every=2")
BESIDE = (*MINE, "refresh@training.refresh=asynchronous", "training.refresh.every=2")
TRIGGERED = (
    *MINE,
    "miner.num_negatives=8",
    "refresh@training.refresh=triggered",
    "training.refresh.every=3",
    "training.refresh.num_negatives=2",
    "training.refresh.factor=1.0",
    "training.refresh.ceiling=2.0",
)


def config(folder: Path, settings: tuple[str, ...], name: str = "run") -> dict[str, Any]:
    return tiny_config(folder, *settings, f"miner.store={folder / 'embeddings'}", name=name)


def versions(folder: Path, name: str = "run") -> dict[int, MinedNegatives]:
    found = sorted((folder / name / "negatives").glob("step_*"))
    assert not [path for path in found if path.suffix], "work that is over leaves nothing behind"
    return {int(path.name.removeprefix("step_")): MinedNegatives(path) for path in found}


def test_a_row_brings_the_negatives_that_the_first_weights_find(tmp_path: Path) -> None:
    settings = config(tmp_path, MINE)
    done, _, seen = train_tiny(settings)
    assert done == 6
    mined = versions(tmp_path)
    assert list(mined) == [0]
    rows = list(JsonLines(path=str(tmp_path / "pairs.jsonl")))
    expected = {}
    for number, example in enumerate(rows):
        extended = mined[0].extend(example, "pairs", number)
        assert len(extended.negatives) == 2
        assert not {*extended.negatives} & {*example.positives}
        expected[text_id(example.positives[0])] = [text_id(text) for text in extended.negatives]
    for (batch,) in seen:
        assert len(batch) % 3 == 0
        for place in range(0, len(batch), 3):
            assert batch[place + 1 : place + 3] == expected[batch[place]]


def test_without_a_refresh_nothing_is_mined_again_and_with_one_it_is(tmp_path: Path) -> None:
    train_tiny(config(tmp_path, EVERY_2))
    mined = versions(tmp_path)
    assert list(mined) == [0, 2, 4]
    assert (mined[0].numbers("pairs").shape, mined[2].manifest["step"]) == ((26, 2), 2)
    reported = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    turnover = {row["step"]: row["negatives/turnover"] for row in reported if "negatives/turnover" in row}
    assert turnover.keys() == {3, 5}, "the first updates that use them"
    for step, share in ((step - 1, share) for step, share in turnover.items()):
        assert share == pytest.approx(_turnover(mined[step - 2], mined[step]))
    assert max(turnover.values()) > 0, "the weights of step 2 or 4 find others"


def _turnover(before: MinedNegatives, after: MinedNegatives) -> float:
    rows = list(range(len(before.numbers("pairs"))))
    texts = [
        [{m.text("pairs", n) for n in m.numbers("pairs")[row].tolist() if n >= 0} for row in rows]
        for m in (before, after)
    ]
    return sum(len(now - was) for was, now in zip(*texts, strict=True)) / sum(map(len, texts[1]))


def test_a_process_beside_finds_what_the_run_itself_would_find(tmp_path: Path) -> None:
    train_tiny(config(tmp_path, BESIDE, "beside"))
    beside = versions(tmp_path, "beside")
    assert list(beside) == [0, 2]  # what step 4 began would be taken up at step 6, which there is not
    trainer = tiny_trainer(config(tmp_path, BESIDE, "here"))
    trainer.total_steps = 2
    trainer.fit()
    assert trainer.negatives is not None
    trainer.negatives._mine_here(2)
    here = versions(tmp_path, "here")
    assert (here[2].numbers("pairs") == beside[2].numbers("pairs")).all()


def test_rows_that_have_learned_theirs_go_on_to_the_next_of_their_lists(tmp_path: Path) -> None:
    _, _, seen = train_tiny(config(tmp_path, TRIGGERED))
    lists = versions(tmp_path)[0]
    reported = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    moved = {row["step"]: row["negatives/moved_rows"] for row in reported if "negatives/moved_rows" in row}
    assert moved.keys() == {4}
    rows = list(JsonLines(path=str(tmp_path / "pairs.jsonl")))
    of = {text_id(row.positives[0]): lists.extend(row, "pairs", i).negatives for i, row in enumerate(rows)}
    for (batch,) in seen[:3]:
        for place in range(0, len(batch), 3):
            assert batch[place + 1 : place + 3] == [text_id(text) for text in of[batch[place]][:2]]


def train_on_ranks(folder: str, settings: tuple[str, ...]) -> tuple[torch.Tensor, list[Any]]:
    _, end, seen = train_tiny(config(Path(folder), settings, "ranks"))
    return end, seen


@pytest.mark.parametrize("settings", [EVERY_2, TRIGGERED], ids=["all ranks together", "triggered"])
def test_two_ranks_mine_what_one_does(tmp_path: Path, settings: tuple[str, ...]) -> None:
    plain = ("backbone.dropout=0", "optim.eps=0.01")  # Adam makes updates of the rounding of a gradient that is zero
    _, alone, seen = train_tiny(config(tmp_path, (*settings, *plain), "alone"))
    (first, its), (second, others) = run_ranks(train_on_ranks, 2, str(tmp_path), (*settings, *plain))
    assert torch.equal(first, second)
    assert [[a[0] + b[0]] for a, b in zip(its, others, strict=True)] == seen
    torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-4)


def test_what_fails_beside_the_training_ends_it_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(config(tmp_path, BESIDE))
    assert trainer.negatives is not None
    process = trainer.negatives.process
    assert process is not None
    process.settings = {**process.settings, "miner": {"_target_": "embedtrain.mining.miner.Nobody"}}
    with pytest.raises(TrainingError, match=r"(?s)negatives of step 2 ended with code 1: .*Nobody"):
        trainer.fit()
