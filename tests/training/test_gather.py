"""Batches that are not gathered: each rank has its own softmax, and the step is the mean of them over all queries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embedtrain import distributed
from embedtrain.errors import ConfigError
from embedtrain.losses.extra.memory import CrossBatchMemory
from embedtrain.losses.infonce import InfoNCE
from embedtrain.training.building import refuse_memory
from embedtrain.training.step import ContrastiveStep
from embedtrain.training.telemetry import batch_facts
from embedtrain.types import EmbeddingBatch, LossOutput
from tests.helpers.ranks import run_ranks
from tests.training.test_step import BagEncoder, NaiveInfoNCE, error, gradients, make_batch


def a_loop_over_ranks(sizes: list[int], loss: torch.nn.Module) -> tuple[float, list[Tensor]]:
    encoder, total = BagEncoder(), torch.zeros(())
    for rank, size in enumerate(sizes):
        batch = make_batch(size, first=sum(sizes[:rank]))
        own = EmbeddingBatch(encoder(batch.queries), encoder(batch.documents), batch.relation, slice(0, size))
        total = total + size / sum(sizes) * loss(own).loss
    total.backward()
    return total.item(), [p.grad for m in (encoder, loss) for p in m.parameters() if p.grad is not None]


def one_step(sizes: list[int], loss: torch.nn.Module, cached_share: float, gather: bool):
    rank = distributed.rank()
    step = ContrastiveStep(
        encoder=BagEncoder(), loss=loss, chunk_tokens=12, cached_share=cached_share, seed=7, gather=gather
    )
    result = step([make_batch(sizes[rank], first=sum(sizes[:rank]))], 0)
    return result.loss, result.metrics, gradients(step)


@pytest.mark.parametrize("sizes", [[4, 4], [5, 3]])
@pytest.mark.parametrize("loss", [NaiveInfoNCE(), InfoNCE()], ids=["by loops", "ours"])
def test_loss_and_gradient_are_those_of_a_loop_over_ranks(sizes, loss):
    expected_loss, expected = a_loop_over_ranks(sizes, loss)
    loss.zero_grad()
    for found_loss, _, found in run_ranks(one_step, 2, sizes, loss, 0.5, False):
        assert found_loss == pytest.approx(expected_loss, abs=1e-5)
        ratio, cosine = error(found, expected)
        assert ratio == pytest.approx(1, abs=1e-5)
        assert cosine > 1 - 1e-8
    gathered = run_ranks(one_step, 2, sizes, loss, 0.5, True)[0]
    assert gathered[0] > expected_loss + 0.1  # a softmax over the documents of both


def test_metrics_are_means_over_all_queries():
    for loss, metrics, _ in run_ranks(one_step, 2, [5, 3], NaiveInfoNCE(), 0.0, False):
        assert metrics["loss_again"] == pytest.approx(loss, abs=1e-6)


def test_on_one_rank_it_changes_nothing():
    one, other = (one_step([6], InfoNCE(), 0.0, gather) for gather in (True, False))
    assert one[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))


def facts(gather: bool):
    rank = distributed.rank()
    return batch_facts([make_batch([5, 3][rank], first=5 * rank)], gather=gather)


def test_the_first_line_says_that_nothing_crosses_devices():
    alone, together = run_ranks(facts, 2, False)[1], run_ranks(facts, 2, True)[1]
    assert alone.cross_device_negatives == 0 < together.cross_device_negatives
    assert alone.in_batch_negatives == pytest.approx(together.in_batch_negatives, abs=1.0)
    assert (alone.queries, alone.documents) == (together.queries, together.documents)
    assert replace(alone, in_batch_negatives=0, cross_device_negatives=0, ignored=0) == replace(
        together, in_batch_negatives=0, cross_device_negatives=0, ignored=0
    )


def remembers():
    with pytest.raises(ConfigError, match=r"training\.gather=false: the loss remembers"):
        refuse_memory(InfoNCE(extra={"memory": CrossBatchMemory(size=8)}))
    refuse_memory(InfoNCE())


def test_a_loss_that_remembers_is_refused_on_several_ranks():
    run_ranks(remembers, 2)
    refuse_memory(InfoNCE(extra={"memory": CrossBatchMemory(size=8)}))


class NamesItsRank(NaiveInfoNCE):
    """A metric that other ranks do not have, as a loss for each source has."""

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        output = super().forward(batch)
        return LossOutput(output.loss, {f"of_{distributed.rank()}": output.loss.detach()})


def test_metrics_of_one_rank_alone_are_logged_by_all():
    found = run_ranks(one_step, 2, [5, 3], NamesItsRank(), 0.0, False)
    for loss, metrics, _ in found:
        assert sorted(metrics) == ["of_0", "of_1"]
        assert sum(metrics.values()) == pytest.approx(loss, abs=1e-6)
