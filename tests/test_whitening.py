"""Whitening: no mean, equal variance, by a linear layer that travels with the model."""

from __future__ import annotations

import pytest
import torch

from embedtrain.errors import ConfigError, DataError
from embedtrain.pooling.gaussian import GaussianPooling
from embedtrain.whitening import check_whitening, fit_whitening, whitening
from tests.export.test_sentence_transformers import PROBES, tiny_encoder

WORDS = "red green blue old new cat dog bird fish tree".split()  # noqa: SIM905
TEXTS = [f"{a} {b} and {a}" for a in WORDS for b in WORDS]


def test_whitened_vectors_have_no_mean_and_the_unit_covariance():
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors = vectors @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5
    mean, matrix = whitening(vectors, 6)
    white = (vectors - mean) @ matrix
    torch.testing.assert_close(white.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(white.T @ white / 200, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


def test_fewer_dimensions_are_those_of_the_largest_variance():
    """The paper's code: U, s of the covariance by SVD, W = U diag(1 / sqrt(s)), its first columns; up to signs."""
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 7)
    mean, matrix = whitening(vectors, 3)
    u, s, _ = torch.linalg.svd(torch.cov(vectors.T, correction=0))
    expected = (vectors - vectors.mean(0)) @ (u @ torch.diag(1 / s.sqrt()))[:, :3]
    torch.testing.assert_close(((vectors - mean) @ matrix).abs(), expected.abs(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("projection_dim", [None, 12])
def test_the_encoder_gives_the_whitened_vectors_on_the_unit_sphere(projection_dim, tmp_path):
    encoder = tiny_encoder(tmp_path, projection_dim=projection_dim)
    plain = tiny_encoder(tmp_path, projection_dim=projection_dim, normalize=False)
    vectors = torch.cat([plain.encode(TEXTS[0::2], role="query"), plain.encode(TEXTS[1::2], role="document")])
    mean, matrix = whitening(vectors.double(), 8)
    fit_whitening(encoder, TEXTS, 8)
    assert encoder.embedding_dim == 8
    assert encoder.normalize
    expected = torch.nn.functional.normalize((plain.encode(PROBES).double() - mean) @ matrix, dim=1).float()
    torch.testing.assert_close(encoder.encode(PROBES), expected, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_whitened_is_refused(tmp_path):
    encoder = tiny_encoder(tmp_path)
    with pytest.raises(ConfigError, match=r"export\.whiten_to=33: the embedding has 32 dimensions"):
        check_whitening(encoder, 33)
    with pytest.raises(DataError, match="needs more texts than dimensions, and the run has 6"):
        fit_whitening(encoder, TEXTS[:6], 8)
    with pytest.raises(DataError, match="vary in 2 directions only"):
        fit_whitening(encoder, ["a cat", "a dog", "a red bird", "a dog"] * 5, 8)
    assert encoder.projection is None
    with pytest.raises(ConfigError, match="GaussianPooling does not give one plain vector"):
        check_whitening(tiny_encoder(tmp_path, pooling=GaussianPooling(hidden_size=32, dim=4)), 2)
