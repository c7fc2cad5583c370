"""Votes of several models against a loop, and how often models are called."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from embedtrain.data.draws import Ints
from embedtrain.distributed import rank, sum_over_ranks
from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.filters.agreement import Agreement
from embedtrain.mining.records import MiningData
from tests.helpers.ranks import run_ranks
from tests.mining.filters.tables import part_of, table


class Stand:
    """Scores pairs by a table of its own, at a scale of its own, and notes each call."""

    def __init__(self, seed: int, scale: float) -> None:
        self.name = f"stand-in {seed}"
        self.scores = scale * torch.rand(50, 50, generator=torch.Generator().manual_seed(seed))
        self.calls: list[int] = []

    def score(self, data: MiningData, queries: Ints, documents: Ints) -> torch.Tensor:
        self.calls.append(queries.size)
        return self.scores[queries, documents]


def stands() -> dict[str, Any]:
    """A cosine, logits that are all negative, and large numbers; a name that a recipe dropped."""
    return {"a": Stand(1, 1.0), "b": Stand(2, -8.0), "c": Stand(3, 100.0), "gone": None}


@pytest.mark.parametrize("against", ["lowest", "highest", "mean"])
@pytest.mark.parametrize("votes", [1, 2, None])
def test_a_candidate_stays_where_enough_models_score_it_below_their_own_positive(
    votes: int | None, against: str
) -> None:
    whole = table(3)
    blocks = [part_of(whole, [4, 2, 0]), part_of(whole, []), part_of(whole, [1, 3, 5, 6, 7, 8, 9, 10, 11])]
    models = stands()
    part = Agreement(rescorers=models, share=0.7, votes=votes, against=against)
    part.prepare(whole.data, blocks)
    pick = {"lowest": min, "highest": max, "mean": lambda own: sum(own) / len(own)}[against]
    kept = asked = 0
    for block in blocks:
        found = part(block)
        for row, column in torch.nonzero(block.kept).tolist():
            query, document = int(block.queries[row]), int(block.documents[row, column])
            below = 0
            for model in (models["a"], models["b"], models["c"]):
                positive = pick([float(model.scores[query, own]) for own in whole.data.positives_of(query)])
                below += float(model.scores[query, document]) < positive - 0.3 * abs(positive)
            assert bool(found[row, column]) == (below >= (votes or 3))
            kept += int(found[row, column])
            asked += 1
    assert 0 < kept < asked
    facts = part.facts()
    assert facts["candidates"] == asked
    assert facts["models"] == {"a": "stand-in 1", "b": "stand-in 2", "c": "stand-in 3"}
    assert set(facts["taken for negatives by"]) == {"a", "b", "c"}
    assert models["a"].calls == [asked + whole.data.positives.size]


def test_a_later_call_may_ask_about_fewer_but_not_about_others() -> None:
    whole = table(3)
    block = part_of(whole, [2, 3])
    part = Agreement(rescorers=stands())
    part.prepare(whole.data, [block])
    wide = part(block) & block.kept
    block.kept[:, 1] = False
    narrow = part(block)
    wide[:, 1] = False
    assert torch.equal(narrow, wide)
    with pytest.raises(AssertionError, match=re.escape("prepare() saw other candidates")):
        part(part_of(whole, [0, 4]))


def test_a_score_that_is_no_number_names_the_model() -> None:
    whole = table(3)
    models = stands()
    models["b"].scores[:] = math.nan
    with pytest.raises(DataError, match=r"agreement.rescorers.b: things: the score of a positive is nan"):
        Agreement(rescorers=models).prepare(whole.data, [whole])


def test_settings_that_make_no_sense_are_refused() -> None:
    for empty in (None, {}, {"gone": None}):
        with pytest.raises(ConfigError, match=r"agreement.rescorers: empty"):
            Agreement(rescorers=empty)
    for votes in (0, 4):
        with pytest.raises(ConfigError, match=rf"agreement.votes={votes}: expected 1 to 3"):
            Agreement(rescorers=stands(), votes=votes)


class Together(Stand):
    """A model that all ranks must call together."""

    def score(self, data: MiningData, queries: Ints, documents: Ints) -> torch.Tensor:
        self.together = int(sum_over_ranks(torch.tensor([queries.size])))
        return super().score(data, queries, documents)


def ranks_with_different_blocks() -> tuple[np.ndarray, list[int]]:
    """The second rank has two blocks, the first has none."""
    whole = table(3)
    models = {"a": Together(1, 1.0), "b": Together(2, -8.0)}
    part = Agreement(rescorers=models)
    blocks = [] if rank() == 0 else [part_of(whole, [0, 1, 2]), part_of(whole, [5])]
    part.prepare(whole.data, blocks)
    found = [(part(block) & block.kept).numpy() for block in blocks]
    return np.concatenate([np.zeros((0, 9), dtype=bool), *found]), [model.together for model in models.values()]


def test_every_rank_calls_every_model_once_whatever_it_has() -> None:
    whole = table(3)
    alone = part_of(whole, [0, 1, 2, 5])
    part = Agreement(rescorers={"a": Stand(1, 1.0), "b": Stand(2, -8.0)})
    part.prepare(whole.data, [alone])
    (nothing, seen), (found, other) = run_ranks(ranks_with_different_blocks, 2)
    assert nothing.size == 0
    assert seen == other == [int(alone.kept.sum()) + alone.positive_scores.numel()] * 2
    np.testing.assert_array_equal(found, (part(alone) & alone.kept).numpy())
