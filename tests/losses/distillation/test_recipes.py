"""Losses of published models that are put together in YAML, against the arithmetic of their papers and code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from embedtrain.config.build import build
from embedtrain.config.compose import compose_config
from embedtrain.types import EmbeddingBatch
from tests.helpers.batches import aligned_batch
from tests.losses.distillation.batches import taught_batch
from tests.losses.distillation.test_in_batch import late, with_views


def value(name: str, batch: EmbeddingBatch) -> float:
    return build(compose_config([f"loss={name}"]).config["loss"])(batch).loss.item()


def test_stella_is_the_three_losses_of_its_trainer():
    batch = taught_batch(dim=7, teacher_dim=7)
    taught = batch.teachers["teacher"]
    s = torch.cat([batch.queries.values, batch.documents.values])
    t = torch.cat([taught.queries.values, taught.documents.values])

    def differences(vectors: torch.Tensor) -> torch.Tensor:
        """similarity of one pair minus that of another, for all pairs of pairs."""
        pairs = (vectors @ vectors.T)[torch.triu(torch.ones(len(vectors), len(vectors)), 1).bool()]
        all_pairs = pairs[None, :] - pairs[:, None]
        return all_pairs[torch.triu(torch.ones_like(all_pairs), 1).bool()]

    sign = torch.where(differences(t) < 0, 1, -1)
    expected = (
        10 * F.cosine_embedding_loss(s, t, torch.ones(len(s)))
        + 200 * F.mse_loss(s @ s.T, t @ t.T)
        + 20 * F.relu(differences(s) * sign + 0.015).mean()
    )
    assert value("stella", batch) == pytest.approx(expected.item(), rel=1e-9)


def test_bge_m3_is_the_sum_of_its_code():
    batch = with_views(aligned_batch(queries=5, hard=2))
    q, d = batch.queries, batch.documents
    dense = q.values @ d.values.T / 0.02
    sparse = q.view("sparse").values @ d.view("sparse").values.T / 0.02
    colbert = late(q.view("multi_vector"), d.view("multi_vector")) / 0.02
    ensemble = dense + 0.3 * sparse + colbert
    target = torch.arange(5) * 3
    hard = [F.cross_entropy(scores, target) for scores in (dense, ensemble, sparse, colbert)]
    soft = torch.softmax(ensemble, dim=-1)
    distilled = [-(torch.log_softmax(s, -1) * soft).sum(-1).mean() for s in (dense, sparse, colbert)]
    loss = (hard[0] + hard[1] + 0.1 * hard[2] + hard[3]) / 4
    loss = (loss + (distilled[0] + 0.1 * distilled[1] + distilled[2]) / 3) / 2
    assert value("bge_m3", batch) == pytest.approx(loss.item(), rel=1e-9)


def test_e5_is_kl_over_its_own_documents_and_a_fifth_of_contrast():
    batch = aligned_batch(queries=5, hard=3)
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = replace(batch, relation=replace(batch.relation, scores=scores.flatten()))
    similar = batch.queries.values @ batch.documents.values.T / 0.01
    own = torch.stack([similar[i, 4 * i : 4 * i + 4] for i in range(5)])
    expected = F.kl_div(own.log_softmax(1), scores.softmax(1), reduction="batchmean")
    expected = expected + 0.2 * F.cross_entropy(similar, torch.arange(5) * 4)
    assert value("e5_distillation", batch) == pytest.approx(expected.item(), rel=1e-9)
