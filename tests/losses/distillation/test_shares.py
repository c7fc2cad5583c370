"""Each rank's share of every distillation loss, added over ranks, is the loss and the gradient of the whole batch."""

from __future__ import annotations

import pytest
import torch

from embedtrain.losses.distillation.embedding_match import EmbeddingMatch
from embedtrain.losses.distillation.in_batch_kl import InBatchKL
from embedtrain.losses.distillation.margin_mse import MarginMSE
from embedtrain.losses.distillation.relative_triplets import RelativeTriplets
from embedtrain.losses.distillation.score_kl import ScoreKL
from embedtrain.losses.distillation.similarity_matrix import SimilarityMatrix
from embedtrain.losses.distillation.successive import SuccessiveSoftmax
from tests.helpers.batches import with_leaves
from tests.losses.distillation.batches import gradients, on_ranks, taught_batch

LOSSES = [
    EmbeddingMatch(),
    EmbeddingMatch(average="kinds", distance="cosine"),
    SimilarityMatrix(),
    RelativeTriplets(),
    ScoreKL(),
    ScoreKL(teacher="teacher", direction="js"),
    MarginMSE(),
    InBatchKL(),
    InBatchKL(teacher=None),
    SuccessiveSoftmax(),
    SuccessiveSoftmax(teacher="teacher", order="teacher"),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("edges", [(6,), (1, 4, 6), (2, 2, 6)])
def test_shares_of_ranks_add_up(loss, edges):
    batch = taught_batch(dim=7, teacher_dim=7, negatives=(0, 3))
    whole = with_leaves(batch)
    value = loss(whole).loss
    expected = (value, *gradients(whole, value))
    for found, wanted in zip(on_ranks(loss, batch, edges), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
