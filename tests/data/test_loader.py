import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from embedtrain.data.loader import StepLoader
from embedtrain.data.mixture import Mixture
from embedtrain.data.prompts import Prompts
from embedtrain.data.sampling import Sampler
from embedtrain.data.sources import JsonLines
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import Relation, TokenBatch, TrainingExample, text_id
from tests.data.helpers import Rows, minilm, mixture, pairs, write_jsonl


def loader(mix: Mixture, batch: int = 8, seed: int = 0, draws=None, **settings) -> StepLoader:
    tokenizer = TextTokenizer(tokenizer=minilm(), prompts=Prompts(), max_query_length=16, max_document_length=16)
    sampler = Sampler(mix, seed=seed, global_batch_size=batch, **(draws or {}))
    return StepLoader(sampler=sampler, tokenizer=tokenizer, **{"num_workers": 0, **settings})


def same(a: TokenBatch, b: TokenBatch) -> bool:
    def equal(x, y) -> bool:
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if hasattr(x, "__dataclass_fields__"):
            return all(equal(getattr(x, f.name), getattr(y, f.name)) for f in fields(x))
        return x == y

    return equal(a, b)


def all_same(one: list[list[TokenBatch]], other: list[list[TokenBatch]]) -> bool:
    return len(one) == len(other) and all(
        len(x) == len(y) and all(map(same, x, y)) for x, y in zip(one, other, strict=True)
    )


def test_workers_give_the_batches_of_no_workers():
    mix = mixture(30, 14)
    alone = list(loader(mix, accumulation_steps=2).steps(0, 12))
    assert all_same(alone, list(loader(mix, accumulation_steps=2, num_workers=2).steps(0, 12)))
    assert all(len(step) == 2 for step in alone)


def test_spawned_workers_give_them_too(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"query": f"q{n}", "positive": f"p{n}"} for n in range(20)])
    mix = Mixture(sources={"file": JsonLines(path=path)})
    alone = list(loader(mix).steps(0, 3))
    default = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        spawned = list(loader(mix, num_workers=1).steps(0, 3))
    finally:
        multiprocessing.set_start_method(default, force=True)
    assert all_same(alone, spawned)


@pytest.mark.parametrize("workers", [0, 1])
def test_any_start_goes_on_as_the_whole_run_does(workers):
    mix = mixture(30)
    whole = list(loader(mix).steps(0, 10))
    assert all_same(whole[6:], list(loader(mix, num_workers=workers).steps(6, 10)))  # the middle of the second epoch


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_number_of_ranks_does_not_change_the_global_batch(world):
    mix = mixture(33, 14)
    alone = [[batch.rows for batch in step] for step in loader(mix, accumulation_steps=2).steps(0, 6)]
    ranks = [list(loader(mix, accumulation_steps=2, rank=r, world_size=world).steps(0, 6)) for r in range(world)]
    for step, micro_batches in enumerate(alone):
        for micro, rows in enumerate(micro_batches):
            parts = [ranks[r][step][micro] for r in range(world)]
            assert sum((p.rows for p in parts), ()) == rows
            assert all(len(p.rows) >= 1 for p in parts)
            assert len({p.share for p in parts}) == 1


def test_shares_of_micro_batches_add_up_to_one():
    for step in loader(mixture(31), 8, accumulation_steps=3).steps(0, 4):
        assert sum(batch.share for batch in step) == pytest.approx(1.0)
        counts = [len(batch.rows) for batch in step]
        assert [batch.share for batch in step] == [count / sum(counts) for count in counts]


def test_all_positives_of_a_query_are_known_also_those_of_other_rows():
    rows = [
        TrainingExample(query="same", positives=("a", "b")),
        TrainingExample(query="same", positives=("c",)),
        TrainingExample(query="other", positives=("d",)),
    ]
    (batch,) = next(loader(Mixture(sources={"s": Rows(rows)}), 3).steps(0, 1))
    relation: Relation = batch.relation
    for query in range(3):
        known = set(relation.known_ids[relation.known_offsets[query] : relation.known_offsets[query + 1]].tolist())
        expected = "abc" if int(relation.query_ids[query]) == text_id("same") else "d"
        assert known == {text_id(t) for t in expected}


def test_draws_are_carried_out():
    rows = [TrainingExample(query=f"q{n}", positives=("x", "y"), negatives=("n1", "n2", "n3")) for n in range(4)]
    subject = loader(Mixture(sources={"s": Rows(rows)}), 4, draws={"num_positives": 1, "num_negatives": 2})
    (batch,) = next(subject.steps(0, 1))
    assert batch.relation.is_positive.tolist() == [True, False, False] * 4
    assert batch.sources == ("s",) * 4


def test_length_and_epochs():
    subject = loader(mixture(30))
    assert len(subject) == subject.steps_per_epoch == 4
    assert subject.epoch_of(6) == 1.5


def test_too_few_rows_for_ranks_and_micro_batches_are_refused_at_once():
    with pytest.raises(
        ConfigError, match=r"smallest global batch of data.sources.s0 has 4 rows, but 3 ranks x 2 micro-batches"
    ):
        loader(mixture(12), 8, accumulation_steps=2, world_size=3)


class _Failing(Rows):
    def _read(self, row: int) -> TrainingExample:
        if "index" in self.__dict__ and row == 5:
            raise DataError("pairs.jsonl:6: gone")
        return super()._read(row)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_arrives_as_it_is(workers):
    mix = Mixture(sources={"s": _Failing(pairs(8))})
    with pytest.raises(DataError) as caught:
        list(loader(mix, num_workers=workers).steps(0, 1))
    assert str(caught.value) == "pairs.jsonl:6: gone"


def test_workers_outlive_a_signal_that_is_for_the_trainer():
    batches = loader(mixture(100), num_workers=1).steps(0, 10)
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 9


@pytest.mark.parametrize("end", ["sys.exit(0)", "raise RuntimeError('x')", "batches.close()"])
def test_a_program_that_ends_in_the_middle_does_not_hang(end, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.data.test_loader import loader, mixture\n"
        "batches = loader(mixture(400), num_workers=2).steps(0, 50)\n"
        f"next(batches)\n{end}\n"
    )
    done = subprocess.run([sys.executable, str(program)], timeout=120, capture_output=True, text=True)
    assert done.returncode == (1 if "raise" in end else 0), done.stderr
