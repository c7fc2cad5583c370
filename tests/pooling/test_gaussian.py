"""A mean at the first token, a variance at the last."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from embedtrain.gaussian import document_vectors, query_vectors
from embedtrain.pooling.gaussian import GaussianPooling
from embedtrain.types import RaggedTokens
from tests.helpers.models import tiny_model_dir
from tests.pooling.test_every_head import encoder


def test_mean_of_the_first_token_and_log_variance_of_the_last():
    hidden = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    tokens = RaggedTokens.from_lists([[1] * 5, [1] * 3], skip=[2, 0])
    torch.manual_seed(1)
    head = GaussianPooling(hidden_size=6, dim=4)
    torch.testing.assert_close(head(hidden, tokens)[:, 4:], torch.zeros(2, 4), atol=1e-5, rtol=0)  # variance 1
    torch.nn.init.normal_(head.variance.weight)
    made = head(hidden, tokens)
    for text, (first, last) in enumerate([(0, 4), (5, 7)]):
        variance = (1 + (head.variance.weight @ hidden[last] + head.variance.bias).exp()).log() + 1e-6
        torch.testing.assert_close(made[text, :4], head.mean.weight @ hidden[first] + head.mean.bias)
        torch.testing.assert_close(made[text, 4:], variance.log(), rtol=1e-4, atol=1e-5)


def test_no_state_gives_a_variance_without_a_logarithm():
    head = GaussianPooling(hidden_size=2, dim=2)
    torch.nn.init.constant_(head.variance.weight, -1000.0)
    hidden = torch.ones(1, 2, requires_grad=True)
    made = head(hidden, RaggedTokens.from_lists([[1]]))
    made.sum().backward()
    assert made.isfinite().all()
    assert hidden.grad.isfinite().all()


def test_vectors_for_search_rank_by_the_divergence():
    """phi_q . phi_d = -KL(q || d) + h(q), against torch's own divergence."""
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (3, 5))

    def normal(gaussian):
        return Normal(gaussian[:3], (gaussian[3:] / 2).exp())

    negative = torch.tensor(
        [[-float(kl_divergence(normal(q), normal(d)).sum()) for d in documents] for q in queries], dtype=torch.float64
    )
    found = GaussianPooling.search_vectors(queries, "query") @ GaussianPooling.search_vectors(documents, "document").T
    rest = found - negative
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), rtol=1e-12, atol=1e-12)


def test_the_encoder_searches_by_the_divergence(tmp_path):
    model = encoder("gaussian", tiny_model_dir("bert", tmp_path), "auto")
    texts = ["a cat", "two dogs and a bird"]
    for role, vectors in (("query", query_vectors), ("document", document_vectors)):
        raw = model.encode_embeddings(texts, role=role)
        assert raw.dim == model.embedding_dim == 512
        torch.testing.assert_close(model.encode(texts, role=role), vectors(raw.values))
