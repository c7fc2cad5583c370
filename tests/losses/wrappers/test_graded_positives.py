"""Contrast of what was graded well, against a loop; and the shares of ranks add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.wrappers.graded_positives import GradedPositives
from embedtrain.losses.wrappers.view import View
from embedtrain.types import NO_OWNER, EmbeddingBatch, Needs, needs_of
from tests.helpers.batches import aligned_batch, annotated, random_batch, supplied, with_leaves

ONE = InfoNCE(temperature=0.2)


def graded(seed: int, hard: int = 0) -> EmbeddingBatch:
    return annotated(aligned_batch(seed, queries=9, hard=hard))


def by_a_loop(batch: EmbeddingBatch, threshold: float) -> torch.Tensor:
    """InfoNCE of the pairs that score enough, over all documents."""
    relation, terms = batch.relation, []
    for query in range(relation.num_queries):
        for document in range(relation.num_documents):
            own = relation.owner[document] == query and relation.is_positive[document]
            if own and relation.scores[document] >= threshold:
                logits = batch.documents.values @ batch.queries.values[query] / 0.2
                terms.append(logits.logsumexp(0) - logits[document])
    return torch.stack(terms).mean()


@pytest.mark.parametrize("hard", [0, 2])
def test_only_pairs_that_score_enough_are_positives_and_all_documents_are_negatives(hard: int):
    batch = graded(0, hard)
    output, expected = GradedPositives(inner=ONE, threshold=0.6)(batch), by_a_loop(batch, 0.6)
    assert output.loss.item() == pytest.approx(expected.item())
    assert output.loss.item() != pytest.approx(ONE(batch).loss.item(), abs=1e-3)
    leaves = (batch.queries.values, batch.documents.values)
    found, wanted = (torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (output.loss, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_where_all_score_enough_it_is_the_inner_loss():
    batch = annotated(random_batch(3, texts=4, contents=9))
    assert GradedPositives(inner=ONE, threshold=0.0)(batch).loss.item() == pytest.approx(ONE(batch).loss.item())


def test_where_none_does_it_is_zero_and_can_be_added_to_others():
    batch = graded(1)
    output = GradedPositives(inner=ONE, threshold=1.5)(batch)
    output.loss.backward()
    assert output.loss.item() == 0
    assert not batch.queries.values.grad.any()


def test_documents_without_a_grade_or_a_query_are_no_positives():
    batch = graded(2)
    scores, owner = batch.relation.scores.clone(), batch.relation.owner.clone()
    scores[:] = 1.0
    scores[0] = float("nan")
    owner[1] = NO_OWNER
    changed = replace(batch, relation=replace(batch.relation, scores=scores, owner=owner))
    assert GradedPositives(inner=ONE)(changed).loss.item() == pytest.approx(by_a_loop(changed, 0.5).item())


def test_shares_of_ranks_add_up_to_the_whole():
    batch = graded(4, 1)
    loss = GradedPositives(inner=ONE, threshold=0.6)
    parts = [loss(replace(with_leaves(batch), rows=rows)).loss.item() for rows in (slice(0, 2), slice(2, 9))]
    assert sum(parts) == pytest.approx(loss(batch).loss.item())


def test_it_stands_around_a_layer():
    loss = GradedPositives(inner=View(inner=ONE, view="layer_2"), threshold=0.6)
    assert needs_of(loss).layers == (2,)
    assert needs_of(loss).scores
    batch = supplied(graded(5), Needs(layers=(2,)))
    assert loss(batch).loss.item() == pytest.approx(by_a_loop(batch.view("layer_2"), 0.6).item())
