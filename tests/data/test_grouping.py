"""Batches of P classes with K rows each."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.mixture import Mixture
from embedtrain.data.sampling import Sampler, batch_sizes
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample
from tests.data.helpers import Rows


def labelled(*sizes: int, **common) -> Rows:
    """Classes c0, c1, ... of these sizes."""
    rows = [
        TrainingExample(query=f"q{c}.{n}", positives=(f"p{c}.{n}",), label=f"c{c}")
        for c, size in enumerate(sizes)
        for n in range(size)
    ]
    return Rows(rows, **common)


def sampler(source: Rows, seed: int = 0, **given) -> Sampler:
    return Sampler(Mixture(sources={"s": source}), seed=seed, global_batch_size=8, **given)


def classes(subject: Sampler, epoch: int = 0) -> list[Counter]:
    plan, labels = subject.epoch(epoch), subject.mixture.indexes[0].label_ids
    return [Counter(labels[plan[step].row].tolist()) for step in range(len(plan))]


@given(
    sizes=st.lists(st.integers(1, 25), min_size=2, max_size=8),
    per_label=st.integers(2, 4),
    num_classes=st.integers(2, 4),
    epoch=st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_row_comes_once_and_all_batches_but_the_last_hold_whole_groups(sizes, per_label, num_classes, epoch):
    batch = per_label * num_classes
    subject = sampler(labelled(*sizes, batch_size=batch, texts_per_label=per_label))
    plan = subject.epoch(epoch)
    assert sorted(plan.rows.row.tolist()) == list(range(sum(sizes)))
    assert plan.sizes.tolist() == batch_sizes(sum(sizes), batch).tolist()
    whole = sum(size // per_label for size in sizes) // num_classes
    for step, counts in enumerate(classes(subject, epoch)[:whole]):
        first = plan[step].row[:batch]
        assert all(count % per_label == 0 for count in Counter(subject.mixture.indexes[0].label_ids[first]).values())
        assert step == len(plan) - 1 or sum(counts.values()) == batch


@given(per_class=st.integers(2, 6), num_classes=st.integers(4, 8), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_classes_are_in_a_batch_once_where_there_are_enough_of_them(per_class, num_classes, seed):
    """Equal classes of whole groups: every batch is exactly 2 classes of 3 rows."""
    subject = sampler(labelled(*[6 * per_class] * num_classes, batch_size=6, texts_per_label=3), seed=seed)
    assert all(sorted(counts.values()) == [3, 3] for counts in classes(subject))


def test_a_pass_is_a_function_of_the_seed_and_its_number():
    def rows(seed: int, epoch: int) -> list[int]:
        return sampler(labelled(9, 9, 9, batch_size=6, texts_per_label=3), seed=seed).epoch(epoch).rows.row.tolist()

    assert rows(0, 1) == rows(0, 1)
    assert rows(0, 1) != rows(0, 0)
    assert rows(0, 1) != rows(1, 1)


def test_companions_change_from_pass_to_pass():
    """A group is drawn anew each time: a row meets many others of its class over the epochs."""
    subject = sampler(labelled(12, 12, batch_size=4, texts_per_label=2))
    met = set()
    for epoch in range(12):
        plan = subject.epoch(epoch)
        for step in range(len(plan)):
            own = [row for row in plan[step].row.tolist() if row < 12]
            met |= {row for row in own if 0 in own and row != 0}
    assert len(met) >= 5


def test_no_text_is_in_a_batch_twice_where_that_can_be_had():
    rows = [
        TrainingExample(query=f"q{c}.{n}", positives=(f"shared {n}",), label=f"c{c}")
        for c in range(4)
        for n in range(8)
    ]
    plan = sampler(Rows(rows, batch_size=4, texts_per_label=2)).epoch(0)
    shared = [len(set((plan[step].row % 8).tolist())) for step in range(len(plan))]
    assert np.mean([4 - distinct for distinct in shared]) < 0.5
    assert plan.num_meeting == sum(4 - distinct for distinct in shared)


def test_drop_last_keeps_whole_batches():
    subject = sampler(labelled(7, 6, 6, batch_size=6, texts_per_label=3), drop_last=True)
    assert subject.epoch(0).sizes.tolist() == [6, 6, 6]
    assert len(set(subject.epoch(0).rows.row.tolist())) == 18


def test_what_cannot_be_grouped_is_refused():
    with pytest.raises(
        ConfigError, match=r"s\.texts_per_label=3: batches .* 8 queries, which is not 2 or more classes of 3"
    ):
        sampler(labelled(9, 9, texts_per_label=3))
    with pytest.raises(ConfigError, match=r"texts_per_label=8: .* Use batch_size=16"):
        sampler(labelled(9, 9, texts_per_label=8))
    bare = TrainingExample(query="q", positives=("p",))
    with pytest.raises(DataError, match=r"1 of 3 rows have no label"):
        sampler(Rows([*labelled(1, 1).examples, bare], texts_per_label=4))
    with pytest.raises(DataError, match=r"all rows have one class"):
        sampler(labelled(9, texts_per_label=4))
    with pytest.raises(ConfigError, match=r"texts_per_label=4: with data\.batching=blended"):
        Mixture(sources={"s": labelled(9, 9, texts_per_label=4)}, batching="blended")
