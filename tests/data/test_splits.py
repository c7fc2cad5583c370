import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedtrain.data.splits import held_out
from embedtrain.errors import ConfigError, DataError


def rows_of(n):
    return [(f"query {i}", [f"answer {i}"]) for i in range(n)]


def test_share_is_met_where_rows_share_nothing():
    assert sum(held_out(rows_of(1000), share=0.1)) == 100
    assert sum(held_out(rows_of(5), share=0.1)) == 1  # at least one


def test_seed_draws_another_part_and_the_same_seed_the_same():
    first, again, other = (held_out(rows_of(200), share=0.2, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_order_of_the_rows_does_not_matter():
    rows = rows_of(300) + [("query 3", ["answer 4"]), ("query 5", ["query 6"])]
    part = dict(zip([str(r) for r in rows], held_out(rows, share=0.3, seed=3), strict=True))
    random.Random(0).shuffle(rows)
    assert dict(zip([str(r) for r in rows], held_out(rows, share=0.3, seed=3), strict=True)) == part


def test_more_rows_move_few_rows():
    rows = rows_of(1000)
    before, after = held_out(rows[:900], share=0.1), held_out(rows, share=0.1)
    assert sum(a != b for a, b in zip(before, after, strict=False)) < 20


texts = st.integers(0, 40).map(str)


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=2, max_size=60), st.integers(0, 3))
def test_no_text_is_ever_on_both_sides(rows, seed):
    try:
        part = held_out(rows, share=0.3, seed=seed)
    except DataError:
        return
    sides = [
        {text for (q, ps), h in zip(rows, part, strict=True) if h is side for text in (q, *ps)}
        for side in (True, False)
    ]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_rows_that_hang_together_are_refused():
    rows = [(f"query {i}", ["the one answer"]) for i in range(50)]
    with pytest.raises(DataError, match=r"1 groups .* largest of 50 rows"):
        held_out(rows, share=0.1)


def test_large_group_stays_in_training():
    rows = [(f"asked {i}", ["the one answer"]) for i in range(50)] + rows_of(50)
    part = held_out(rows, share=0.2, seed=0)
    assert not any(part[:50])
    assert sum(part) == 20


@pytest.mark.parametrize("share", [0.0, 1.0, -1, 2])
def test_share_must_be_a_share(share):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        held_out(rows_of(3), share=share)
