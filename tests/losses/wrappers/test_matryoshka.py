from __future__ import annotations

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.losses import prepare
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.wrappers.matryoshka import Matryoshka
from embedtrain.types import EmbeddingBatch, Embeddings
from tests.helpers.batches import random_batch, with_leaves


def cut(batch: EmbeddingBatch, dim: int) -> EmbeddingBatch:
    """The first `dim` numbers of each vector, as unit vectors again."""

    def short(x: Embeddings) -> Embeddings:
        if dim == x.dim:
            return x
        return Embeddings(x.values[:, :dim] / x.values[:, :dim].norm(dim=1, keepdim=True))

    return EmbeddingBatch(short(batch.queries), short(batch.documents), batch.relation)


def test_the_weighted_sum_over_normalised_prefixes():
    batch = random_batch(dim=8)
    output = Matryoshka(inner=InfoNCE(), dims=[2, 8, 4], weights=[0.25, 1.0, 0.5])(batch)
    other = with_leaves(batch)
    expected = sum(w * InfoNCE()(cut(other, d)).loss for d, w in ((2, 0.25), (4, 0.5), (8, 1.0)))
    assert output.loss.item() == pytest.approx(expected.item())
    output.loss.backward()
    expected.backward()
    torch.testing.assert_close(batch.queries.values.grad, other.queries.values.grad)
    torch.testing.assert_close(batch.documents.values.grad, other.documents.values.grad)


def test_metrics_are_those_of_the_largest_dim_and_the_loss_of_each():
    batch = random_batch(dim=8)
    metrics = Matryoshka(inner=InfoNCE(), dims=[4, 8])(batch).metrics
    for name, value in InfoNCE()(batch).metrics.items():
        torch.testing.assert_close(metrics[name], value)
    assert metrics["loss_4"].item() == pytest.approx(InfoNCE()(cut(batch, 4)).loss.item())
    assert metrics["loss_8"].item() == pytest.approx(InfoNCE()(batch).loss.item())


def test_embeddings_that_are_not_normalised_stay_so():
    batch = random_batch(dim=8)
    raw = EmbeddingBatch(
        Embeddings(batch.queries.values * 2, normalized=False),
        Embeddings(batch.documents.values * 2, normalized=False),
        batch.relation,
    )
    expected = EmbeddingBatch(
        Embeddings(raw.queries.values[:, :4]), Embeddings(raw.documents.values[:, :4]), raw.relation
    )
    loss = Matryoshka(inner=InfoNCE(), dims=[4])(raw).loss
    torch.testing.assert_close(loss, InfoNCE()(expected).loss)


def test_a_dim_above_the_embedding_size_is_refused():
    with pytest.raises(ConfigError, match=r"loss.dims: \[16\] above the embedding size 8. Use dims <= 8"):
        prepare(Matryoshka(inner=InfoNCE(), dims=[4, 16]), embedding_dim=8, teachers={})
    with pytest.raises(ConfigError, match=r"embeddings of 8 dimensions to 16. Use dims <= 8"):
        Matryoshka(inner=InfoNCE(), dims=[4, 16])(random_batch(dim=8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": []}, "loss.dims"),
        ({"dims": [0, 4]}, "at least 1"),
        ({"dims": [4, 4]}, "distinct"),
        ({"dims": [8, 4], "weights": [1.0]}, "loss.weights: expected one per dim, 2"),
    ],
)
def test_bad_settings_name_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        Matryoshka(inner=InfoNCE(), **settings)
