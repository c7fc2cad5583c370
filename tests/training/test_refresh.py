"""When negatives are mined again, and which rows go on to others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedtrain.errors import ConfigError
from embedtrain.training.learned_rows import LearnedRows
from embedtrain.training.refresh import Periodic, Triggered
from embedtrain.types import Embeddings, RaggedTokens, Relation, TokenBatch
from tests.helpers.ranks import run_ranks


@given(every=st.integers(1, 12), lag=st.integers(0, 12))
def test_a_version_is_taken_up_lag_steps_after_its_weights_whatever_is_asked_when(every: int, lag: int) -> None:
    if lag > every:
        with pytest.raises(ConfigError, match="lag"):
            Periodic(every=every, lag=lag)
        return
    refresh = Periodic(every=every, lag=lag)
    # Step by step, as one would do it by hand.
    in_use, at_work = 0, None
    changes = {0}
    for step in range(60):
        before = (in_use, at_work)
        if at_work is not None and step == at_work + lag:
            in_use, at_work = at_work, None
        if step and step % every == 0:
            if lag:
                at_work = step
            else:
                in_use = step
        if (in_use, at_work) != before:
            changes.add(step)
        assert refresh.version(step) == in_use
        assert refresh.pending(step) == at_work
    for step in range(40):
        assert refresh.next_change(step) == min(change for change in range(step + 1, 80) if change in _all(every, lag))
    assert changes <= _all(every, lag)


def _all(every: int, lag: int) -> set[int]:
    """Steps before which something may happen."""
    return {0} | {b * every + offset for b in range(1, 90) for offset in (0, lag)}


def batch(rows: list[int], scores: list[list[float]]) -> tuple[Embeddings, Embeddings, TokenBatch]:
    """Queries of rows of the source `s`, whose hard negatives have these cosines with them; a positive each."""
    owner = [i for i, own in enumerate(scores) for _ in range(1 + len(own))]
    positive = [flag for own in scores for flag in (True, *(False for _ in own))]
    values = [value for own in scores for value in (0.9, *own)]
    tokens = RaggedTokens.from_lists([[1]] * len(rows))
    relation = Relation(
        query_ids=torch.arange(len(rows)),
        document_ids=torch.arange(len(owner)),
        owner=torch.tensor(owner),
        is_positive=torch.tensor(positive),
        known_ids=torch.arange(0),
        known_offsets=torch.zeros(len(rows) + 1, dtype=torch.int64),
    )
    queries = Embeddings(torch.tensor([[1.0, 0.0]] * len(rows)))
    lengths = torch.arange(1.0, len(values) + 1)[:, None]  # which do not matter
    documents = Embeddings(
        lengths * torch.tensor([[value, (1 - value**2) ** 0.5] for value in values]), normalized=False
    )
    return queries, documents, TokenBatch(tokens, tokens, relation, sources=("s",) * len(rows), numbers=tuple(rows))


def test_a_row_moves_on_when_its_negatives_have_fallen_by_the_factor() -> None:
    learned = LearnedRows(Triggered(every=1, num_negatives=2, factor=1.15, ceiling=0.8), {"r": 3, "s": 4})
    learned.observe(*batch([0, 1, 2, 3], [[0.6, 0.4], [0.95, 0.95], [0.5, 0.5], []]))
    learned.settle()
    assert learned.look({"r": np.full(3, 9), "s": np.full(4, 9)}).sum() == 0  # nobody was seen twice
    # 0.5 -> mean of 0.3 and 0.5: 1.15 * 0.4 < 0.5; 0.95 -> 0.82 is above the ceiling; 0.5 -> 0.45: 1.15 * 0.45 > 0.5
    learned.observe(*batch([0, 1, 2], [[0.3, 0.3], [0.82, 0.82], [0.45, 0.45]]))
    learned.observe(*batch([0], [[0.5, 0.5]]))
    learned.settle()
    assert learned.look({"r": np.full(3, 9), "s": np.full(4, 9)}).sum() == 1
    assert {name: starts.tolist() for name, starts in learned.starts().items()} == {"r": [0, 0, 0], "s": [2, 0, 0, 0]}
    assert torch.isnan(learned.at_first[3])  # what comes next begins anew


def test_a_row_at_the_end_of_its_list_stays() -> None:
    learned = LearnedRows(Triggered(every=1, num_negatives=2), {"s": 2})
    for score in (0.5, 0.1):
        learned.observe(*batch([0, 1], [[score], [score]]))
    learned.settle()
    assert learned.look({"s": np.array([2, 3])}).sum() == 1
    assert learned.starts()["s"].tolist() == [0, 2]


def note_shares(shares: list[list[tuple[list[int], list[list[float]]]]]) -> list[list[float]]:
    from embedtrain import distributed

    learned = LearnedRows(Triggered(every=1, num_negatives=2), {"s": 6})
    for number, step in enumerate(shares):
        learned.observe(*batch(*step[distributed.rank()]))
        if number == 1:
            learned.settle()  # as a checkpoint would
    learned.settle()
    return [buffer.nan_to_num(-1).tolist() for buffer in learned.buffers().values()]


def test_ranks_agree_and_settling_earlier_changes_nothing() -> None:
    draw = np.random.default_rng(0)
    shares = []
    for _ in range(4):
        rows = draw.permutation(6)
        scores = draw.random((6, 2)).tolist()
        shares.append([(rows[r::2].tolist(), scores[r::2]) for r in range(2)])
    first, second = run_ranks(note_shares, 2, shares)
    assert first == second
    alone = LearnedRows(Triggered(every=1, num_negatives=2), {"s": 6})
    for step in shares:
        alone.observe(*batch([row for part in step for row in part[0]], [own for part in step for own in part[1]]))
    alone.settle()
    for buffer, shared in zip(alone.buffers().values(), first, strict=True):  # sums in another order round otherwise
        np.testing.assert_allclose(buffer.nan_to_num(-1), shared, rtol=1e-6)
