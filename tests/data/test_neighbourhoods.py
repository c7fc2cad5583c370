"""Batches of one neighbourhood."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.mixture import Mixture
from embedtrain.data.neighbourhoods import clusters_met
from embedtrain.data.sampling import Sampler, batch_sizes
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample
from tests.data.helpers import Rows, mixture, pairs
from tests.helpers.ranks import run_ranks

# Rows of each cluster, in the order of the clusters' numbers.
cluster_sizes = st.lists(st.integers(1, 25), min_size=1, max_size=9)


def shuffled(counts: list[int], seed: int = 0) -> np.ndarray:
    """The cluster of each row, in no order of the rows."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def sampler(clusters: np.ndarray, batch: int = 6, seed: int = 0, source: Rows | None = None, **given) -> Sampler:
    mix = Mixture(sources={"s": source or Rows(pairs(clusters.size))})
    return Sampler(mix, seed=seed, global_batch_size=batch, clusters={"s": clusters}, **given)


def batches(subject: Sampler, epoch: int = 0) -> list[list[int]]:
    """The clusters of the rows of each batch."""
    plan = subject.epoch(epoch)
    return [subject.clusters["s"][plan[step].row].tolist() for step in range(len(plan))]


@given(cluster_sizes, st.integers(1, 8), st.booleans(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_row_comes_once_in_batches_of_the_usual_sizes(counts, batch, drop_last, epoch):
    if drop_last and sum(counts) < batch:
        return
    subject = sampler(shuffled(counts), batch, drop_last=drop_last)
    plan = subject.epoch(epoch)
    assert plan.sizes.tolist() == batch_sizes(sum(counts), batch, drop_last).tolist()
    rows = plan.rows.row.tolist()
    assert len(set(rows)) == len(rows) == plan.sizes.sum()
    assert drop_last or len(rows) == sum(counts)


@given(cluster_sizes, st.integers(1, 8), st.booleans(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_as_many_full_batches_are_of_one_cluster_as_there_can_be(counts, batch, drop_last, epoch):
    """No plan has more: a batch of one cluster takes `batch` of its rows, and there are only so many full batches."""
    if drop_last and sum(counts) < batch:
        return
    found = [set(b) for b in batches(sampler(shuffled(counts), batch, drop_last=drop_last), epoch) if len(b) == batch]
    possible = min(len(found), sum(count // batch for count in counts))
    assert sum(len(clusters) == 1 for clusters in found) >= possible


@given(cluster_sizes, st.integers(1, 8), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_a_batch_of_several_clusters_is_of_neighbours(counts, batch, epoch):
    """It passes over no cluster of which something is left over; but for the one batch where the line ends and begins."""
    mixed = [set(b) for b in batches(sampler(shuffled(counts), batch), epoch) if len(b) == batch and len(set(b)) > 1]
    left = {cluster for cluster, count in enumerate(counts) if count % batch}
    passed_over = [left & set(range(min(clusters), max(clusters))) - clusters for clusters in mixed]
    assert sum(bool(some) for some in passed_over) <= 1


@given(cluster_sizes, st.integers(2, 8), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_facts_of_a_plan_are_counted_right(counts, batch, epoch):
    subject = sampler(shuffled(counts), batch)
    plan = subject.epoch(epoch)
    expected = [len(set(b)) for b in batches(subject, epoch)]
    assert clusters_met(subject.clusters["s"][plan.rows.row], plan.sizes).tolist() == expected


def test_a_plan_of_three_clusters_by_hand():
    """Batches of 4. Whole: 1 of the first, 2 of the second. Left over 1, 1, 2: one batch. Nothing is mixed otherwise."""
    found = batches(sampler(shuffled([5, 9, 2]), 4))
    assert sorted(tuple(sorted(Counter(b).items())) for b in found) == [
        ((0, 1), (1, 1), (2, 2)),
        ((0, 4),),
        ((1, 4),),
        ((1, 4),),
    ]


def test_a_larger_last_batch_takes_a_batch_of_the_nearest_cluster():
    """One row is left over, too few for a batch: the last batch is a batch and that row, of the same cluster if it has one."""
    assert sampler(shuffled([9, 8, 4]), 4).epoch(0).sizes.tolist() == [4, 4, 4, 4, 5]
    assert [set(b) for b in batches(sampler(shuffled([8, 9, 4]), 4))][-1] == {1}
    assert Counter(batches(sampler(shuffled([8, 4, 1]), 4))[-1]) == {1: 4, 2: 1}


def test_passes_differ_in_company_order_and_joins():
    subject = sampler(shuffled([15, 15, 15, 15]), 6)
    plans = [subject.epoch(epoch) for epoch in range(6)]
    assert len({tuple(plan.rows.row.tolist()) for plan in plans}) == 6
    companies = {frozenset(plan[step].row.tolist()) for plan in plans for step in range(len(plan))}
    assert len(companies) > 30
    assert len({tuple(sorted(set(b))) for epoch in range(6) for b in batches(subject, epoch) if len(set(b)) > 1}) > 1


def test_batches_are_shuffled_and_clusters_do_not_come_one_after_the_other():
    order = [b[0] for b in batches(sampler(np.repeat(np.arange(10), 60), 6))]
    assert sum(a != b for a, b in pairwise(order)) > 70


def test_a_plan_is_a_function_of_seed_epoch_and_clusters_alone():
    clusters = shuffled([13, 4, 30])
    rows = [sampler(clusters).epoch(epoch).rows.row.tolist() for epoch in range(3)]
    again = sampler(clusters)
    assert [again.epoch(epoch).rows.row.tolist() for epoch in (2, 0, 1)] == [rows[2], rows[0], rows[1]]
    assert sampler(clusters, seed=1).epoch(0).rows.row.tolist() != rows[0]
    assert sampler(shuffled([13, 4, 30], seed=1)).epoch(0).rows.row.tolist() != rows[0]


def planned(clusters: np.ndarray) -> list[list[int]]:
    subject = sampler(clusters)
    return [subject.epoch(epoch).rows.row.tolist() for epoch in range(2)]


def test_all_ranks_make_the_same_plan():
    clusters = shuffled([13, 4, 30])
    assert run_ranks(planned, 2, clusters) == [planned(clusters)] * 2


def test_each_source_has_its_own_clusters_and_others_are_drawn_at_random():
    mix = mixture(40, 30, 20)
    clusters = {"s0": np.arange(40) % 4, "s2": np.arange(20) % 2}
    plan = Sampler(mix, seed=0, global_batch_size=10, clusters=clusters).epoch(0)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(len(plan)):
        source, row = int(plan[step].source[0]), plan[step].row
        assert len(set(plan[step].source.tolist())) == 1
        seen[source].append(len(set((row % (4 if source == 0 else 2)).tolist())))
    assert seen == {0: [1] * 4, 1: [2] * 3, 2: [1] * 2}


def repeated(counts: list[int], times: int) -> tuple[np.ndarray, Rows]:
    """Rows of clusters in which every answer is the positive of `times` rows."""
    clusters = np.repeat(np.arange(len(counts)), counts)
    rows = [TrainingExample(query=f"q{n}", positives=(f"p{c}.{n // times}",)) for n, c in enumerate(clusters.tolist())]
    return clusters, Rows(rows)


def test_rows_with_one_answer_are_moved_apart_within_their_cluster():
    """Every answer has 4 rows, and a cluster 6 batches: there is a place for each."""
    clusters, source = repeated([36, 36, 36], 4)
    subject = sampler(clusters, 6, source=source)
    for epoch in range(5):
        plan = subject.epoch(epoch)
        assert plan.num_meeting == 0
        assert all(len(set(b)) == 1 for b in batches(subject, epoch))


def test_rows_that_ask_the_same_query_are_moved_apart_within_their_cluster():
    """Dealing looks at answers; queries take changes of place, since each is asked 3 times in a cluster of 6 batches."""
    clusters = np.repeat(np.arange(3), 36)
    source = Rows([TrainingExample(query=f"q{n // 3}", positives=(f"p{n}",)) for n in range(108)])
    for seed in range(5):
        subject = sampler(clusters, 6, seed=seed, source=source)
        assert subject.epoch(0).num_meeting == 0
        assert all(len(set(b)) == 1 for b in batches(subject))


def test_rows_that_have_no_other_place_in_their_cluster_meet_and_are_counted():
    """A cluster of one batch, and each answer twice in it."""
    clusters, source = repeated([6, 6], 2)
    subject = sampler(clusters, 6, source=source)
    assert subject.epoch(0).num_meeting == 6
    assert all(len(set(b)) == 1 for b in batches(subject))


@given(cluster_sizes, st.integers(2, 8), st.integers(2, 4), st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_moving_rows_apart_changes_no_batch_s_clusters(counts, batch, times, epoch):
    clusters, source = repeated(counts, times)
    apart = sampler(clusters, batch, source=source)
    assert sorted(apart.epoch(epoch).rows.row.tolist()) == list(range(sum(counts)))
    plain = sampler(clusters, batch)  # rows that share no text: the same draws before anything is moved
    assert [Counter(b) for b in batches(apart, epoch)] == [Counter(b) for b in batches(plain, epoch)]


@given(st.lists(st.integers(8, 40), min_size=1, max_size=4), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_no_more_rows_meet_than_in_clusters_that_are_not_moved(counts, epoch):
    clusters, source = repeated(counts, 3)
    subject = sampler(clusters, 4, source=source)
    plan = subject.epoch(epoch)
    untouched = sampler(clusters, 4).epoch(epoch)  # the same plan, made without knowing of the repeated answers
    answers = [source[row].positives[0] for row in range(clusters.size)]
    meeting = 0
    for step in range(len(untouched)):
        known = [answers[row] for row in untouched[step].row]
        meeting += len(known) - len(set(known))
    assert plan.num_meeting <= meeting


def test_the_fingerprint_covers_the_clusters():
    clusters = shuffled([5, 6])
    other = clusters.copy()
    other[[clusters.argmin(), clusters.argmax()]] = other[[clusters.argmax(), clusters.argmin()]]
    found = [sampler(c).fingerprint for c in (clusters, other)]
    assert found[0]["the data"] == found[1]["the data"]
    assert found[0]["the neighbourhoods of the data"] != found[1]["the neighbourhoods of the data"]
    assert set(Sampler(mixture(11), seed=0, global_batch_size=4).fingerprint) == {"the data"}


def test_clusters_do_not_travel_to_workers():
    assert "clusters" not in sampler(shuffled([5, 6])).__getstate__()


def test_what_does_not_go_together_is_refused():
    clusters = np.zeros(8, dtype=np.int64)
    with pytest.raises(
        ConfigError, match=r"data\.neighbourhoods: with data\.batching=blended a batch is of all sources"
    ):
        Sampler(mixture(8, batching="blended"), seed=0, global_batch_size=4, clusters={"s0": clusters})
    rows = [TrainingExample(query=f"q{n}", positives=(f"p{n}",), label=str(n % 2)) for n in range(8)]
    with pytest.raises(
        ConfigError, match=r"data\.sources\.s\.texts_per_label=2: with data\.neighbourhoods the model says"
    ):
        sampler(clusters, 4, source=Rows(rows, texts_per_label=2))
    with pytest.raises(DataError, match=r"data\.sources\.s0: 9 rows, and 8 of them have a cluster"):
        Sampler(mixture(9), seed=0, global_batch_size=4, clusters={"s0": clusters})
