from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MarginMSELoss

from embedtrain.losses.distillation.margin_mse import MarginMSE
from tests.helpers.batches import aligned_batch, with_leaves
from tests.losses.distillation.batches import gradients, own_documents, taught_batch


def slow(batch, t: float, taught: float) -> torch.Tensor:
    squares = []
    for query in range(len(batch.queries)):
        documents = own_documents(batch, query)
        s = {d: batch.queries.values[query] @ batch.documents.values[d] for d in documents}
        r = batch.relation.scores
        for p in (d for d in documents if batch.relation.is_positive[d]):
            for n in (d for d in documents if not batch.relation.is_positive[d]):
                squares.append(((s[p] - s[n]) / t - (r[p] - r[n]) / taught) ** 2)
    return torch.stack(squares).mean()


def test_the_mean_over_all_triples_of_the_squared_difference_of_margins():
    batch = taught_batch(negatives=(0, 3))
    loss = MarginMSE(temperature=0.5, teacher_temperature=3.0)(batch).loss
    other = with_leaves(batch)
    expected = slow(other, 0.5, 3.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for found, wanted in zip(gradients(batch, loss), gradients(other, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hard", [1, 3])
def test_sentence_transformers_gives_the_same(hard):
    batch = aligned_batch(queries=5, hard=hard)
    scores = torch.randn(5, hard + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = replace(batch, relation=replace(batch.relation, scores=scores.flatten()))
    columns = [batch.queries.values, *batch.documents.values.view(5, hard + 1, -1).unbind(1)]
    expected = MarginMSELoss(torch.nn.Identity()).compute_loss_from_embeddings(columns, scores)
    loss = MarginMSE()(batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for found, wanted in zip(gradients(batch, loss), gradients(batch, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_a_batch_without_hard_negatives_has_loss_0():
    assert MarginMSE()(taught_batch(negatives=(0, 0))).loss.item() == 0
