"""Layers and dims: against the sum written out, with the KL by a loop over documents, and by torch over dimensions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, normalize

from embedtrain.errors import ConfigError
from embedtrain.losses import prepare
from embedtrain.losses.extra.memory import CrossBatchMemory
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.wrappers.layers import LayerMatryoshka
from embedtrain.types import EmbeddingBatch, Embeddings, needs_of
from tests.helpers.batches import random_batch, with_leaves

INNER = InfoNCE(temperature=0.3)


def layered_batch(seed: int = 0) -> EmbeddingBatch:
    batch = random_batch(seed, dim=6)
    draw = torch.Generator().manual_seed(seed)

    def viewed(embeddings: Embeddings) -> Embeddings:
        views = {
            f"layer_{layer}": Embeddings(
                normalize(torch.randn(len(embeddings), 6, generator=draw, dtype=torch.float64), dim=1).requires_grad_()
            )
            for layer in (1, 2)
        }
        return replace(embeddings, views=views)

    return replace(batch, queries=viewed(batch.queries), documents=viewed(batch.documents))


def leaves(batch: EmbeddingBatch) -> list[Tensor]:
    return [*batch.queries.tensors(), *batch.documents.tensors()]


def kl_of_documents(full: EmbeddingBatch, sub: EmbeddingBatch, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for q in range(len(full.queries))[full.rows]:
        p, r = (
            torch.stack([x.queries.values[q] @ d / temperature for d in x.documents.values]).softmax(0)
            for x in (full, sub)
        )
        p = p.detach()
        total = total + sum(a * torch.log(a / b) for a, b in zip(p, r, strict=True))
    return total / len(full.queries)


def kl_of_dimensions(full: EmbeddingBatch, sub: EmbeddingBatch, temperature: float) -> Tensor:
    teacher = torch.cat([full.queries.values, full.documents.values]).detach()
    student = torch.cat([sub.queries.values, sub.documents.values])
    p = (teacher[:, : student.shape[1]] / temperature).softmax(1)
    return kl_div((student / temperature).log_softmax(1), p, reduction="batchmean")


@pytest.mark.parametrize(("over", "reference"), [("in_batch", kl_of_documents), ("dimensions", kl_of_dimensions)])
def test_a_fixed_list_is_the_sum_written_out(over, reference):
    batch = layered_batch()
    loss = LayerMatryoshka(
        inner=INNER,
        pairs=[[1, 3], [2, None]],
        weight=0.7,
        full_weight=2.0,
        kl_weight=0.5,
        kl_over=over,
        kl_temperature=0.4,
    )
    output = loss(batch)
    subs = [batch.view("layer_1").truncate(3), batch.view("layer_2")]
    expected = 2 * INNER(batch).loss
    for sub in subs:
        expected = expected + 0.7 * (INNER(sub).loss + 0.5 * reference(batch, sub, 0.4))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for found, want in zip(
        torch.autograd.grad(output.loss, leaves(batch)), torch.autograd.grad(expected, leaves(batch)), strict=True
    ):
        torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-11)
    assert output.metrics["loss_1x3"].item() == pytest.approx(INNER(subs[0]).loss.item())
    assert set(output.metrics) >= {"loss_full", "loss_2x6", "kl_1x3", "kl_2x6", "accuracy"}


def test_each_step_draws_one_layer_and_one_size_the_same_on_all_ranks():
    loss = LayerMatryoshka(inner=INNER, layers=[1, 2], dims=[3, 6], kl_weight=0.0)
    seen = set()
    for seed in range(40):
        metrics = loss(replace(layered_batch(), seed=seed)).metrics
        again = loss(replace(layered_batch(), seed=seed, rows=slice(0, 2))).metrics
        drawn = {name for name in metrics if "x" in name}
        assert drawn == {name for name in again if "x" in name}
        assert len(drawn) == 1
        seen |= drawn
    assert seen == {"loss_1x3", "loss_1x6", "loss_2x3", "loss_2x6"}


def test_null_dims_drop_layers_alone():
    output = LayerMatryoshka(inner=INNER, layers=[2], kl_weight=0.0)(layered_batch())
    assert {name for name in output.metrics if "x" in name} == {"loss_2x6"}


@pytest.mark.parametrize("over", ["in_batch", "dimensions"])
def test_shares_of_ranks_add_up(over):
    loss = LayerMatryoshka(inner=INNER, pairs=[[1, 3]], kl_over=over)
    whole = layered_batch(3)
    expected = loss(whole).loss
    parts = [loss(replace(with_leaves(whole), rows=rows)).loss for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert sum(part.item() for part in parts) == pytest.approx(expected.item(), rel=1e-10)


def test_it_says_which_layers_it_reads():
    assert needs_of(LayerMatryoshka(inner=INNER, pairs=[[2, 8], [1, 4], [2, None]])).layers == (1, 2)
    assert needs_of(LayerMatryoshka(inner=INNER, layers=[3, 1])).layers == (1, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either pairs"),
        ({"pairs": [[1, 2]], "layers": [1]}, "give either pairs"),
        ({"pairs": [[1, 2]], "dims": [4]}, "with pairs each pair has its dim"),
        ({"pairs": [[0, 2]]}, "layers count from 1"),
        ({"pairs": [[1]]}, r"expected \[layer, dim\]"),
        ({"layers": [1], "kl_over": "both"}, "loss.kl_over: expected in_batch or dimensions"),
        ({"layers": [1], "kl_temperature": 0}, "loss.kl_temperature"),
    ],
)
def test_bad_settings_name_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        LayerMatryoshka(inner=INNER, **settings)


def test_sizes_above_the_embedding_and_memories_inside_are_refused_before_a_step():
    with pytest.raises(ConfigError, match=r"loss.dims: \[16\] above the embedding size 8"):
        prepare(LayerMatryoshka(inner=INNER, pairs=[[1, 16]]), embedding_dim=8, teachers={})
    remembers = InfoNCE(extra={"memory": CrossBatchMemory(size=4)})
    with pytest.raises(ConfigError, match="has a memory"):
        prepare(LayerMatryoshka(inner=remembers, layers=[1]), embedding_dim=8, teachers={})
