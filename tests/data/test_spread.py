import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.sampling import batch_sizes
from embedtrain.data.spread import RowKeys, spread


def plan(keys: list[list[int]], batch: int, seed: int = 0):
    """Batches as lists of rows, and the number that meet."""
    row_keys = RowKeys.of(np.array([k for row in keys for k in row]), np.array([len(row) for row in keys]))
    sizes = batch_sizes(len(keys), batch)
    order, meeting = spread(row_keys, sizes, np.random.default_rng(seed))
    return [part.tolist() for part in np.split(order, np.cumsum(sizes)[:-1])], meeting


def count_meeting(batches, keys) -> int:
    """The slow, obvious count: rows with a key that an earlier row of the batch has."""
    total = 0
    for batch in batches:
        seen: set[int] = set()
        for row in batch:
            total += bool(seen & set(keys[row]))
            seen |= set(keys[row])
    return total


rows_of_keys = st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=4), min_size=1, max_size=40)


@given(keys=rows_of_keys, batch=st.integers(1, 12), seed=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_row_comes_once_and_what_meets_is_counted(keys, batch, seed):
    batches, meeting = plan(keys, batch, seed)
    assert sorted(row for b in batches for row in b) == list(range(len(keys)))
    assert meeting == count_meeting(batches, keys)


@given(copies=st.lists(st.integers(1, 8), min_size=1, max_size=12), batch=st.integers(1, 8), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_a_text_held_by_no_more_rows_than_there_are_full_batches_meets_itself_nowhere(copies, batch, seed):
    keys = [[number] for number, count in enumerate(copies) for _ in range(count)]
    keys = keys[: len(keys) // batch * batch] or keys[:1]
    batches, meeting = plan(keys, batch, seed)
    if max(Counter(k for (k,) in keys).values()) <= len(batches):
        assert meeting == count_meeting(batches, keys) == 0


def test_what_can_be_avoided_through_several_keys_is_avoided():
    # Pairs of rows share an answer, others a question, as in FAQ data: 40 rows of 20 questions x 20 answers.
    keys = [[i // 2, 100 + (i * 7) % 20] for i in range(40)]
    for seed in range(20):
        batches, meeting = plan(keys, 8, seed)
        assert meeting == count_meeting(batches, keys) == 0


def test_what_cannot_be_avoided_is_counted():
    batches, meeting = plan([[0]] * 10, 5)
    assert meeting == 8
    assert [len(b) for b in batches] == [5, 5]


def test_a_row_that_repeats_a_text_itself_does_not_meet_itself():
    assert plan([[0, 0], [1, 1], [2, 0]], 3)[1] == 1


def test_orders_differ_by_seed_and_agree_for_one():
    keys = [[i] for i in range(100)]
    assert plan(keys, 10, 1) == plan(keys, 10, 1)
    assert plan(keys, 10, 1) != plan(keys, 10, 2)


def test_partners_are_uniform():
    # Rows 0 and 1 share a batch as often as two random rows do: 9 of 99.
    keys = [[i] for i in range(100)]
    together = sum(any({0, 1} <= set(b) for b in plan(keys, 10, seed)[0]) for seed in range(600))
    assert abs(together / 600 - 9 / 99) < 0.04


@pytest.mark.slow
def test_a_million_rows_are_planned_in_seconds():
    generator = np.random.default_rng(0)
    documents = generator.integers(0, 2**62, 70_000)
    ids = np.stack([documents[generator.integers(0, 70_000, 1_000_000)], np.arange(1_000_000)], 1).ravel()
    start = time.process_time()
    _, meeting = spread(RowKeys.of(ids, np.full(1_000_000, 2)), batch_sizes(1_000_000, 8192), generator)
    assert meeting == 0
    assert time.process_time() - start < 20  # about 1 on a quiet machine
