"""Chunks cover every text once, keep to the budget, and come longest first."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedtrain.data.chunking import chunks
from embedtrain.errors import ConfigError


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 100))
def test_every_text_is_in_exactly_one_chunk_and_the_budget_holds(lengths, budget):
    lengths = torch.tensor(lengths, dtype=torch.int64)
    parts = chunks(lengths, budget)
    assert sorted(i for part in parts for i in part.tolist()) == list(range(lengths.numel()))
    assert all(lengths[part].sum() <= budget or part.numel() == 1 for part in parts)
    in_order = torch.cat([lengths[part] for part in parts]) if parts else lengths
    assert (in_order.diff() <= 0).all()


@given(st.lists(st.integers(1, 60), min_size=2, max_size=50), st.integers(60, 100))
def test_no_chunk_ends_while_the_next_text_fits(lengths, budget):
    lengths = torch.tensor(lengths)
    parts = chunks(lengths, budget)
    for part, following in pairwise(parts):
        assert lengths[part].sum() + lengths[following[0]] > budget


def test_equal_lengths_keep_their_order():
    assert [part.tolist() for part in chunks(torch.tensor([2, 5, 2, 5, 2]), 7)] == [[1], [3, 0], [2, 4]]


def test_a_budget_of_no_token_is_refused():
    with pytest.raises(ConfigError, match=r"chunk_tokens: expected at least 1 token, got 0"):
        chunks(torch.tensor([1]), 0)
