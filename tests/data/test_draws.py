from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedtrain.data.draws import draw


def of_row(count, wanted, row, visit, seed=0):
    taken, which = draw(np.array([count]), wanted, rows=np.array([row]), visits=np.array([visit]), seed=seed)
    assert taken.tolist() == [len(which)]
    return which.tolist()


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    wanted=st.none() | st.integers(0, 5),
    visit=st.integers(0, 20),
    seed=st.integers(0, 2**62),
)
def test_many_rows_at_once_draw_what_each_draws_alone(counts, wanted, visit, seed):
    rows = np.arange(len(counts)) * 7
    taken, which = draw(np.array(counts), wanted, rows=rows, visits=np.full(len(counts), visit), seed=seed)
    for number, part in enumerate(np.split(which, np.cumsum(taken)[:-1])):
        assert part.tolist() == of_row(counts[number], wanted, rows[number], visit, seed)
        assert len(part) == (counts[number] if wanted is None else min(counts[number], wanted))
        assert sorted(set(part.tolist())) == part.tolist()
        assert all(0 <= i < counts[number] for i in part)


def test_all_candidates_are_seen_in_turn():
    seen = Counter(i for visit in range(10) for i in of_row(10, 3, row=4, visit=visit))
    assert seen == dict.fromkeys(range(10), 3)


def test_the_order_is_not_that_of_the_file_and_differs_by_row_and_seed():
    first = {row: tuple(of_row(100, 5, row=row, visit=0)) for row in range(50)}
    assert len(set(first.values())) == 50
    assert abs(np.mean(list(first.values())) - 49.5) < 8
    assert of_row(100, 5, row=0, visit=0, seed=1) != list(first[0])
