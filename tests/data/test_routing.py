"""What sources name for themselves: batch sizes, draws, lengths. The plan stays a pure function of (seed, epoch, step)."""

from collections import Counter
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.describe import describe
from embedtrain.data.lengths import check_lengths
from embedtrain.data.loader import StepLoader
from embedtrain.data.mixture import Mixture
from embedtrain.data.prompts import Prompts
from embedtrain.data.sampling import Sampler, batch_sizes
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError
from embedtrain.types import TokenBatch, TrainingExample
from tests.data.helpers import Rows, minilm, pairs


def tokenizer(**given) -> TextTokenizer:
    return TextTokenizer(tokenizer=minilm(), prompts=Prompts(), max_query_length=16, max_document_length=16, **given)


def sources(sizes: list[int], batches: list[int | None]) -> dict[str, Rows]:
    return {
        f"s{n}": Rows(pairs(size, f"s{n} "), batch_size=batch)
        for n, (size, batch) in enumerate(zip(sizes, batches, strict=True))
    }


some_sources = st.lists(st.tuples(st.integers(1, 40), st.none() | st.integers(1, 12)), min_size=1, max_size=4)


@given(given=some_sources, common=st.integers(1, 12), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_each_row_comes_once_in_an_epoch_in_batches_of_its_source_as_large_as_asked(given, common, epoch):
    sizes, batches = [size for size, _ in given], [batch for _, batch in given]
    sampler = Sampler(Mixture(sources=sources(sizes, batches)), seed=0, global_batch_size=common)
    plan = sampler.epoch(epoch)
    assert len(plan) == sampler.steps_per_epoch
    found = Counter(zip(plan.rows.source.tolist(), plan.rows.row.tolist(), strict=True))
    assert found == Counter({(source, row): 1 for source, size in enumerate(sizes) for row in range(size)})
    for source, (size, batch) in enumerate(given):
        of_source = [len(plan[step]) for step in range(len(plan)) if set(plan[step].source.tolist()) == {source}]
        assert sorted(of_source) == sorted(batch_sizes(size, batch or common).tolist())


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


@given(world=st.integers(1, 4), start=st.integers(0, 11), micro=st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_any_number_of_ranks_and_any_start_give_the_batches_of_one_process(world, start, micro):
    """Each batch is one source's, the ranks' rows make it up in order, and a resumed run reads what the whole one did."""

    def loader(rank: int, size: int) -> StepLoader:
        mixture = Mixture(sources=sources([32, 22, 17], [8, None, 16]))
        sampler = Sampler(mixture, seed=3, global_batch_size=12)
        return StepLoader(
            sampler=sampler, tokenizer=tokenizer(), accumulation_steps=micro, num_workers=0, rank=rank, world_size=size
        )

    alone = list(loader(0, 1).steps(0, 12))
    ranks = [list(loader(rank, world).steps(start, 12)) for rank in range(world)]
    for step, whole in enumerate(alone[start:]):
        assert len({source for batch in whole for source in batch.sources}) == 1
        for number, batch in enumerate(whole):
            parts: list[TokenBatch] = [rank[step][number] for rank in ranks]
            assert sum((part.rows for part in parts), ()) == batch.rows
            assert {part.share for part in parts} == {batch.share}
    assert world > 1 or all(
        same(a, b) for x, y in zip(alone[start:], ranks[0], strict=True) for a, b in zip(x, y, strict=True)
    )


def test_every_query_of_a_step_weighs_the_same_whatever_the_batch_size():
    mixture = Mixture(sources=sources([30, 12], [10, 4]))
    subject = StepLoader(
        sampler=Sampler(mixture, seed=0, global_batch_size=99),
        tokenizer=tokenizer(),
        accumulation_steps=2,
        num_workers=0,
    )
    for step in subject.steps(0, 6):
        assert sum(batch.share for batch in step) == pytest.approx(1.0)
        assert len({batch.share / len(batch.rows) for batch in step}) == 1


def test_weights_are_shares_of_the_queries_and_not_of_the_steps():
    rows = {
        "small": Rows(pairs(400, "a"), weight=1.0, batch_size=5),
        "large": Rows(pairs(400, "b"), weight=1.0, batch_size=20),
    }
    plan = Sampler(Mixture(sources=rows), seed=0, global_batch_size=8).epoch(0)
    queries = Counter(plan.rows.source.tolist())
    assert queries[0] == pytest.approx(queries[1], rel=0.05)
    steps = Counter(int(plan[step].source[0]) for step in range(len(plan)))
    assert steps[0] == pytest.approx(4 * steps[1], rel=0.05)


def test_a_source_draws_by_its_own_numbers():
    rows = [
        TrainingExample(query=f"q{n}", positives=("x", "y", "z"), negatives=("n1", "n2", "n3", "n4")) for n in range(4)
    ]
    mixture = Mixture(sources={"own": Rows(rows, num_positives=2, num_negatives=0), "common": Rows(rows)})
    sampler = Sampler(mixture, seed=0, global_batch_size=4, num_positives=1, num_negatives=3)
    plan = sampler.epoch(0)
    for step in range(2):
        expected = (2, 0) if plan[step].source[0] == 0 else (1, 3)
        assert {(len(p), len(n)) for p, n in sampler.draws(plan[step])} == {expected}
    assert "2 positives, 0 hard negatives" in describe(sampler)
    assert "1 positive, 3 hard negatives" in describe(sampler)


@pytest.mark.parametrize("batching", ["one_source", "blended"])
def test_a_source_cuts_its_texts_at_its_own_lengths(batching):
    rows = [TrainingExample(query="word " * 30, positives=("word " * 30,)) for _ in range(3)]
    mixture = Mixture(
        sources={"short": Rows(rows, max_query_length=5), "long": Rows(rows, max_document_length=24)}, batching=batching
    )
    subject = StepLoader(
        sampler=Sampler(mixture, seed=0, global_batch_size=6), tokenizer=tokenizer(), num_workers=0, rank=0
    )
    for (batch,) in subject.steps(0, subject.steps_per_epoch):
        for number, source in enumerate(batch.sources):
            assert int(batch.queries.lengths[number]) == (5 if source == "short" else 16)
            assert int(batch.documents.lengths[number]) == (16 if source == "short" else 24)
        assert batch.num_truncated == 2 * len(batch.sources)


def test_lengths_that_cannot_be_are_refused_by_their_key():
    with pytest.raises(ConfigError, match=r"data\.sources\.a\.max_query_length=2 leaves no token for text beside 2"):
        check_lengths({"a": Rows(pairs(2), max_query_length=2)}, tokenizer(), None)
    with pytest.raises(
        ConfigError, match=r"data\.sources\.a\.max_document_length=600: the backbone knows 512 positions"
    ):
        check_lengths({"a": Rows(pairs(2), max_document_length=600)}, tokenizer(), 512)
    with pytest.raises(ConfigError, match=r"query_augmentation=12: at most data\.sources\.a\.max_query_length=8"):
        check_lengths({"a": Rows(pairs(2), max_query_length=8)}, tokenizer(query_augmentation=12), None)


def test_numbers_that_make_no_sense_are_refused():
    for name, value in (("batch_size", 0), ("num_positives", 0), ("num_negatives", -1), ("texts_per_label", 1)):
        with pytest.raises(ConfigError, match=f"{name}={value}: expected at least"):
            Rows(pairs(2), **{name: value})
    with pytest.raises(ConfigError, match=r"data\.sources\.s0\.batch_size=4: with data\.batching=blended"):
        Mixture(sources=sources([10, 10], [4, None]), batching="blended")


def test_the_table_says_each_batch_size_where_they_differ():
    text = describe(Sampler(Mixture(sources=sources([40, 40], [10, None])), seed=0, global_batch_size=20))
    assert "6 steps per epoch, 10 or 20 queries per step" in text
    assert "4 batches of 10 per epoch" in text
    assert "2 batches of 20 per epoch" in text
