"""Batches of several sources in equal parts. The plan stays a pure function of (seed, epoch, step)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.describe import describe, describe_parts
from embedtrain.data.loader import StepLoader
from embedtrain.data.mixture import Mixture
from embedtrain.data.outlook import pools_of
from embedtrain.data.parts import crowded, deal_parts, interleave
from embedtrain.data.sampling import Sampler, batch_sizes
from embedtrain.errors import ConfigError
from embedtrain.types import TrainingExample
from tests.data.helpers import Rows, mixture, pairs
from tests.data.test_routing import tokenizer

some_sizes = st.lists(st.integers(1, 60), min_size=2, max_size=6)


def sampler(mix: Mixture, batch: int, n: int, seed: int = 0, **given) -> Sampler:
    return Sampler(mix, seed=seed, global_batch_size=batch, sources_per_batch=n, **given)


def batches_of(plan) -> list[Counter]:
    """Rows of each source in each batch."""
    return [Counter(plan[step].source.tolist()) for step in range(len(plan))]


@given(sizes=some_sizes, n=st.integers(2, 4), part=st.integers(1, 8), epoch=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_each_row_comes_once_in_an_epoch_and_parts_are_as_large_as_asked(sizes, n, part, epoch):
    n = min(n, len(sizes))
    subject = sampler(mixture(*sizes), n * part, n)
    plan = subject.epoch(epoch)
    found = Counter(zip(plan.rows.source.tolist(), plan.rows.row.tolist(), strict=True))
    assert found == Counter({(source, row): 1 for source, size in enumerate(sizes) for row in range(size)})
    assert len(plan) == subject.steps_per_epoch
    assert int(plan.sizes.min()) >= subject.smallest_batch[0]
    for source, size in enumerate(sizes):
        odd = [batch[source] for batch in batches_of(plan) if batch[source] % part]
        assert len(odd) <= (size % part > 0)  # the tail of the source alone is a part of another size


@given(parts=st.lists(st.integers(1, 30), min_size=2, max_size=7), n=st.integers(2, 5), seed=st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_a_batch_has_as_many_sources_as_there_can_be(parts, n, seed):
    n = min(n, len(parts))
    counts = batch_sizes(sum(parts), n)
    batch, _ = deal_parts([np.full(count, 5) for count in parts], counts, n, np.random.default_rng(seed))
    sources = np.repeat(np.arange(len(parts)), parts)
    found = [sources[batch == number].tolist() for number in range(counts.size)]
    assert sorted(map(len, found)) == sorted(counts.tolist())
    again = sum(len(of) - len(set(of)) for of in found)
    assert again >= crowded(np.array(parts), counts.size).sum()  # no arrangement has fewer
    assert again <= crowded(np.array(parts), sum(parts) // n).sum() + (counts > n).sum() * n
    if max(parts) <= sum(parts) // n and counts[-1] <= n:
        assert again == 0


def test_with_weights_every_batch_is_of_n_sources_with_exactly_equal_parts():
    sources = {f"s{n}": Rows(pairs(37 + n, f"s{n} "), weight=w) for n, w in enumerate((3.0, 1.0, 2.0, 2.0))}
    plan = sampler(Mixture(sources=sources), 12, 2).epoch(3)
    *whole, last = sorted(map(dict, batches_of(plan)), key=len, reverse=True)
    assert all(sorted(batch.values()) == [6, 6] for batch in whole)
    assert sum(last.values()) in (6, 12)
    counts = Counter(plan.rows.source.tolist())
    assert [counts[n] / len(plan.rows) for n in range(4)] == pytest.approx([3 / 8, 1 / 8, 2 / 8, 2 / 8], abs=0.05)


def test_every_two_sources_meet():
    plan = sampler(mixture(200, 200, 200, 200), 4, 2).epoch(0)
    met = Counter(tuple(sorted(batch)) for batch in batches_of(plan))
    assert len(met) == 6
    assert min(met.values()) > 10  # 33 on average


def test_a_source_with_more_than_its_part_fills_batches_by_itself_and_is_told_of():
    subject = sampler(mixture(60, 6, 6), 4, 2)
    assert Counter(map(len, batches_of(subject.epoch(0)))) == Counter({1: 12, 2: 6})
    told = "s0 is more than 1/2 of all: 12 of its 30 parts share a batch with another of its own"
    assert told in describe_parts(subject)
    assert f"3 sources, 2 in each batch, 2 queries of each ({told}): 18 steps per epoch" in describe(subject)


def test_a_large_source_goes_on_where_it_stopped_and_a_small_one_starts_again():
    sources = {"large": Rows(pairs(100, "a"), weight=1.0), "small": Rows(pairs(20, "b"), weight=1.0)}
    subject = sampler(Mixture(sources=sources), 8, 2)
    seen = Counter()
    for epoch in range(5):
        plan = subject.epoch(epoch)
        seen.update(zip(plan.rows.source.tolist(), plan.rows.row.tolist(), strict=True))
    for source, size in ((0, 100), (1, 20)):
        visits = [seen[source, row] for row in range(size)]
        assert max(visits) - min(visits) <= 1


def test_a_text_is_in_a_batch_once_also_across_sources():
    answers = [f"answer {n}" for n in range(40)]
    sources = {
        name: Rows([TrainingExample(query=f"{name} {n}", positives=(a,)) for n, a in enumerate(answers)])
        for name in ("a", "b", "c")
    }
    plan = sampler(Mixture(sources=sources), 8, 2).epoch(0)
    assert plan.num_meeting == 0
    for step in range(len(plan)):
        assert len(set(plan[step].row.tolist())) == len(plan[step])
    assert all(len(batch) == 2 for batch in batches_of(plan))


@given(world=st.sampled_from([1, 2, 4]), micro=st.integers(1, 2), start=st.integers(0, 6))
@settings(max_examples=15, deadline=None)
def test_any_number_of_ranks_and_any_start_give_the_batches_of_one_process_each_slice_in_equal_parts(
    world, micro, start
):
    def loader(rank: int, size: int) -> StepLoader:
        subject = sampler(mixture(32, 24, 16), 16, 2, seed=3)
        return StepLoader(
            sampler=subject, tokenizer=tokenizer(), accumulation_steps=micro, num_workers=0, rank=rank, world_size=size
        )

    alone = list(loader(0, 1).steps(0, 8))
    ranks = [list(loader(rank, world).steps(start, 8)) for rank in range(world)]
    for step, whole in enumerate(alone[start:]):
        for number, batch in enumerate(whole):
            assert sum((rank[step][number].rows for rank in ranks), ()) == batch.rows
        slices = [rank[step][number].sources for rank in ranks for number in range(micro)]
        if len(set(sum(slices, ()))) == 2 and len(sum(slices, ())) == 16:
            assert {tuple(sorted(Counter(names).values())) for names in slices} == {(8 // world // micro,) * 2}


def test_rows_are_interleaved_in_proportion():
    batch, source = np.array([0] * 6 + [1] * 4), np.array([0, 0, 0, 0, 1, 1, 0, 0, 1, 1])
    order = interleave(batch, source)
    assert source[order].tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    assert sorted(order.tolist()) == list(range(10))


def test_the_tail_is_left_out_where_that_is_asked():
    subject = sampler(mixture(23, 17, 9), 8, 2, drop_last=True)
    plan = subject.epoch(0)
    assert len(plan) == subject.steps_per_epoch == (5 + 4 + 2) // 2
    assert set(plan.sizes.tolist()) == {8}
    left_out = {
        tuple(
            np.flatnonzero(np.bincount(subject.epoch(e).rows.row[subject.epoch(e).rows.source == 0], minlength=23) == 0)
        )
        for e in range(4)
    }
    assert len(left_out) > 1


def test_the_outlook_is_that_of_a_batch_of_the_longest_texts():
    rows = {
        "short": Rows(pairs(8, "a"), max_document_length=10),
        "middle": Rows(pairs(8, "b"), max_document_length=20),
        "long": Rows(pairs(8, "c"), max_document_length=30),
    }
    examples = [TrainingExample(query="q", positives=("p",), source=name) for name in rows]
    (pool,) = pools_of(
        sampler(Mixture(sources=rows), 4, 2), {"max_query_length": 5, "max_document_length": 99}, examples
    )
    assert (pool.source, pool.rows, pool.steps_per_epoch, pool.queries_per_step) == (None, 24, 6, 4)
    assert pool.tokens == (5 + 20 + 5 + 30) / 2


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"sources_per_batch=2: with data\.batching=blended"):
        sampler(mixture(8, 8, batching="blended"), 4, 2)
    with pytest.raises(ConfigError, match=r"sources_per_batch=3: there are 2 sources \(s0, s1\)"):
        sampler(mixture(8, 8), 6, 3)
    with pytest.raises(ConfigError, match=r"sources_per_batch=2 does not divide training\.global_batch_size=5"):
        sampler(mixture(8, 8), 5, 2)
    with pytest.raises(ConfigError, match=r"data\.sources\.b\.batch_size=4: with data\.sources_per_batch=2"):
        sampler(Mixture(sources={"a": Rows(pairs(4)), "b": Rows(pairs(4), batch_size=4)}), 4, 2)
    with pytest.raises(ConfigError, match=r"data\.neighbourhoods: with data\.sources_per_batch=2"):
        sampler(mixture(8, 8), 4, 2, clusters={"s0": np.zeros(8, dtype=np.int64)})
    with pytest.raises(ConfigError, match=r"drop_last=true drops every row of s1 \(3 rows, parts of 4\)"):
        sampler(mixture(10, 3), 8, 2, drop_last=True)
