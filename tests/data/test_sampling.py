from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.describe import describe
from embedtrain.data.mixture import Mixture
from embedtrain.data.sampling import Sampler, batch_sizes, part
from embedtrain.errors import ConfigError
from embedtrain.types import TrainingExample
from tests.data.helpers import Rows, mixture, pairs

BATCHINGS = ("one_source", "blended")


def sampler(mix: Mixture, batch: int = 4, seed: int = 0, **settings) -> Sampler:
    return Sampler(mix, seed=seed, global_batch_size=batch, **settings)


def rows_of(plan) -> list[tuple[int, int]]:
    return list(zip(plan.rows.source.tolist(), plan.rows.row.tolist(), strict=True))


@given(size=st.integers(1, 60), batch=st.integers(1, 16), batching=st.sampled_from(BATCHINGS), epoch=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_each_row_of_one_source_comes_once_in_each_epoch(size, batch, batching, epoch):
    plan = sampler(mixture(size, batching=batching), batch).epoch(epoch)
    assert sorted(rows_of(plan)) == [(0, row) for row in range(size)]
    assert len(plan) == sampler(mixture(size, batching=batching), batch).steps_per_epoch


@given(rows=st.integers(1, 200), batch=st.integers(1, 50), drop_last=st.booleans())
def test_a_small_tail_joins_its_neighbour_and_a_large_one_stands_alone(rows, batch, drop_last):
    sizes = batch_sizes(rows, batch, drop_last).tolist()
    assert sum(sizes) == (rows // batch * batch if drop_last else rows)
    assert all(size == batch for size in sizes[:-1])
    if not drop_last and rows >= batch:
        assert batch <= 2 * sizes[-1] < 3 * batch


@given(
    size=st.integers(8, 80),
    batch=st.integers(8, 20),
    world=st.integers(1, 4),
    micro=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_slices_of_ranks_are_disjoint_and_cover_the_batch(size, batch, world, micro):
    plan = sampler(mixture(size), batch).epoch(0)
    for step in range(len(plan)):
        whole = plan[step]
        seen = []
        for m in range(micro):
            rows = whole[part(len(whole), m, micro)]
            lengths = [len(rows[part(len(rows), rank, world)]) for rank in range(world)]
            assert max(lengths) - min(lengths) <= 1
            seen += [row for rank in range(world) for row in rows[part(len(rows), rank, world)].row.tolist()]
        assert seen == whole.row.tolist()


def test_an_epoch_is_a_function_of_seed_and_number_alone():
    mix = mixture(30, 10)
    first = [rows_of(sampler(mix).epoch(epoch)) for epoch in range(3)]
    other = sampler(mix)
    assert [rows_of(other.epoch(epoch)) for epoch in (2, 0, 1)] == [first[2], first[0], first[1]]
    assert first[0] != first[1]
    assert rows_of(sampler(mix, seed=1).epoch(0)) != first[0]


def test_one_source_batches_have_one_source():
    plan = sampler(mixture(30, 22, 9)).epoch(1)
    assert all(len(set(plan[step].source.tolist())) == 1 for step in range(len(plan)))
    assert sorted(rows_of(plan)) == [(s, r) for s, n in enumerate((30, 22, 9)) for r in range(n)]


def test_sources_come_mixed_and_not_one_after_the_other():
    plan = sampler(mixture(200, 200)).epoch(0)
    order = [int(plan[step].source[0]) for step in range(len(plan))]
    assert order != sorted(order)
    assert 20 < sum(a != b for a, b in pairwise(order)) < 80


def test_blended_batches_mix_sources():
    plan = sampler(mixture(40, 40, batching="blended"), 8).epoch(0)
    assert sum(len(set(plan[step].source.tolist())) == 2 for step in range(len(plan))) >= 8
    assert sorted(rows_of(plan)) == [(s, r) for s in range(2) for r in range(40)]


def weighted(batching: str, weights=(1.0, 3.0), sizes=(100, 20)) -> Mixture:
    sources = {f"s{n}": Rows(pairs(s, f"s{n} "), weight=w) for n, (s, w) in enumerate(zip(sizes, weights, strict=True))}
    return Mixture(sources=sources, batching=batching)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_shares_follow_the_weights(batching):
    plan = sampler(weighted(batching)).epoch(0)
    counts = Counter(plan.rows.source.tolist())
    assert counts[1] / sum(counts.values()) == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_large_source_goes_on_where_it_stopped_and_a_small_one_starts_again(batching):
    subject = sampler(weighted(batching))
    large, small = Counter(), Counter()
    for epoch in range(4):  # 30 rows of the large source and 90 of the small one in each
        for source, row in rows_of(subject.epoch(epoch)):
            (small if source else large)[row] += 1
    assert max(large.values()) - min(large[row] for row in range(100)) <= 1
    assert max(small.values()) - min(small.values()) <= 1


def test_exponent_flattens_the_shares():
    plan = sampler(mixture(400, 100, exponent=0.5), 10).epoch(0)
    counts = Counter(plan.rows.source.tolist())
    assert counts[0] / counts[1] == pytest.approx(2.0, rel=0.1)


def test_drop_last_leaves_out_another_tail_each_time():
    subject = sampler(mixture(10), 4, drop_last=True)
    assert subject.steps_per_epoch == 2
    left_out = {tuple(sorted(set(range(10)) - set(subject.epoch(e).rows.row.tolist()))) for e in range(6)}
    assert len(left_out) > 1
    assert all(len(rows) == 2 for rows in left_out)


def test_a_document_is_in_a_batch_once_also_across_sources():
    answers = [f"answer {n}" for n in range(10)]
    sources = {
        name: Rows([TrainingExample(query=f"{name} {n}", positives=(a,)) for n, a in enumerate(answers)])
        for name in ("a", "b")
    }
    plan = sampler(Mixture(sources=sources, batching="blended"), 5).epoch(0)
    assert plan.num_meeting == 0
    for step in range(len(plan)):
        assert len(set(plan[step].row.tolist())) == 5


def test_drawn_texts_are_what_batches_are_kept_free_of_doubles_for():
    # Every row has the same 30 negatives and draws 1: with 5 rows to a batch they can all be different.
    negatives = tuple(f"negative {n}" for n in range(30))
    rows = [TrainingExample(query=f"q{n}", positives=(f"p{n}",), negatives=negatives) for n in range(30)]
    subject = sampler(Mixture(sources={"s": Rows(rows)}), 5, num_negatives=1)
    plan = subject.epoch(0)
    assert plan.num_meeting == 0
    for step in range(len(plan)):
        assert len({n for _, (n,) in subject.draws(plan[step])}) == 5


def test_draws_move_on_with_the_visits():
    rows = [TrainingExample(query="q", positives=tuple(f"p{n}" for n in range(4)))]
    subject = sampler(Mixture(sources={"s": Rows(rows)}), 1, num_positives=1)
    drawn = [subject.draws(subject.epoch(epoch)[0])[0][0] for epoch in range(4)]
    assert sorted(drawn) == [[0], [1], [2], [3]]


def test_the_table_says_what_an_epoch_holds():
    rows = [TrainingExample(query=f"q{n}", positives=("p",), negatives=("n",) * (n % 3)) for n in range(9)]
    text = describe(sampler(Mixture(sources={"a": Rows(rows), "longer": Rows(pairs(3))}), 3, num_negatives=2))
    assert "2 sources, one_source: 4 steps per epoch, 3 queries per step" in text
    assert "a       9 rows, weight 9, share 75.0%, 3 batches per epoch (1.00 passes), 1 positive, " in text
    assert "2 hard negatives (6 rows have fewer)" in text


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"drop_last=true drops every row of s1 \(3 rows, batches of 4\)"):
        sampler(mixture(10, 3), 4, drop_last=True)
    with pytest.raises(ConfigError, match="num_positives=0"):
        sampler(mixture(10), num_positives=0)
    with pytest.raises(ConfigError, match="num_negatives=-1"):
        sampler(mixture(10), num_negatives=-1)
    with pytest.raises(ConfigError, match="global_batch_size=0"):
        sampler(mixture(10), 0)
    with pytest.raises(ConfigError, match=r"s0 have a weight and s1 have none"):
        Mixture(sources={"s0": Rows(pairs(2), weight=1), "s1": Rows(pairs(2))})
    with pytest.raises(ConfigError, match="sources is empty"):
        Mixture(sources={})


def test_the_fingerprint_changes_with_the_data_and_the_weights():
    base = mixture(5, 6).fingerprint
    assert mixture(5, 6).fingerprint == base
    assert mixture(5, 7).fingerprint != base
    assert mixture(5, 6, exponent=0.5).fingerprint != base
    assert mixture(5, 6, batching="blended").fingerprint != base
