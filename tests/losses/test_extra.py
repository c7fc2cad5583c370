"""Negatives that no row brought: mixtures and memories."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedtrain.errors import ConfigError
from embedtrain.losses import prepare
from embedtrain.losses.extra import with_documents
from embedtrain.losses.extra.memory import CrossBatchMemory
from embedtrain.losses.extra.mixing import HardNegativeMixing
from embedtrain.losses.infonce import InfoNCE
from embedtrain.losses.wrappers.matryoshka import Matryoshka
from embedtrain.types import NO_OWNER
from tests.helpers.batches import random_batch, with_leaves
from tests.losses import oracle
from tests.losses.test_infonce import gradients


def hard_batch(seed: int = 0):
    return replace(random_batch(seed, queries=6, negatives=(0, 4), dim=4), seed=seed)


def test_mixtures_lie_between_two_hard_negatives_of_one_query():
    batch = hard_batch()
    mixed = HardNegativeMixing(pairs=3, lists=0)(batch)
    first = len(batch.documents)
    owners, counts = (
        mixed.relation.owner[first:],
        torch.bincount(batch.relation.owner[~batch.relation.is_positive], minlength=6),
    )
    assert torch.equal(torch.bincount(owners, minlength=6), 3 * (counts >= 2))
    assert not mixed.relation.is_positive[first:].any()
    for vector, owner in zip(mixed.documents.values[first:].detach(), owners, strict=True):
        hard = batch.documents.values[(batch.relation.owner == owner) & ~batch.relation.is_positive].detach()
        assert vector.norm() == pytest.approx(1)
        residues = []
        for j in range(len(hard)):
            for k in range(j):
                pair = torch.stack([hard[j], hard[k]]).T
                share = torch.linalg.lstsq(pair, vector[:, None]).solution
                inside = bool((share >= -1e-9).all())
                residues.append(float((pair @ share - vector[:, None]).norm()) if inside else 1.0)
        assert min(residues) < 1e-9


def test_the_mixture_of_a_list_is_weighted_by_similarity():
    batch = hard_batch(1)
    mixed = HardNegativeMixing(pairs=0, lists=1, temperature=0.1)(batch)
    first = len(batch.documents)
    for vector, owner in zip(mixed.documents.values[first:], mixed.relation.owner[first:], strict=True):
        own = (batch.relation.owner == owner) & ~batch.relation.is_positive
        hard = batch.documents.values[own]
        weights = torch.softmax(hard @ batch.queries.values[owner] / 0.1, dim=0).detach()
        expected = (weights[:, None] * hard).sum(0)
        torch.testing.assert_close(vector, expected / expected.norm())
    assert len(mixed.documents) > first


def test_shares_of_a_pair_are_beta_2_2():
    """Mean 1/2 and variance 1/20."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(200_000, 3, generator=generator).median(dim=1).values
    assert share.mean().item() == pytest.approx(0.5, abs=0.002)
    assert share.var().item() == pytest.approx(0.05, abs=0.001)


def test_mixing_is_a_function_of_the_step_and_its_gradient_reaches_what_was_mixed():
    batch = hard_batch(2)
    criterion = InfoNCE(temperature=0.2, extra={"mixing": HardNegativeMixing(pairs=2)})
    again = with_leaves(batch)
    output = criterion(batch)
    found = gradients(batch, output.loss)
    for a, b in zip(found, gradients(again, criterion(again).loss), strict=True):
        assert torch.equal(a, b)
    assert criterion(replace(with_leaves(batch), seed=99)).loss != output.loss
    reference = with_leaves(batch)
    expected, _ = oracle.infonce(HardNegativeMixing(pairs=2)(reference), temperature=0.2)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for a, b in zip(found, gradients(reference, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)
    added = int(output.metrics["extra_negatives"])
    assert added == len(HardNegativeMixing(pairs=2)(batch).documents) - len(batch.documents) > 0


def test_a_batch_without_hard_negatives_is_left_alone():
    batch = random_batch(0, negatives=(0, 1))
    assert HardNegativeMixing()(batch) is batch


def test_a_memory_gives_back_what_came_before_without_gradient():
    memory = CrossBatchMemory(size=20).double()
    prepare(memory, embedding_dim=5, teachers={})
    first, second = random_batch(0, contents=8), random_batch(1, contents=8)
    assert len(memory(first).documents) == len(first.documents)
    seen = memory(second)
    past = seen.documents.values[len(second.documents) :]
    assert torch.equal(past, first.documents.values[: len(past)])
    assert not past.requires_grad or past.grad_fn is not None
    assert (seen.relation.owner[len(second.documents) :] == NO_OWNER).all()
    assert int(memory.filled) == min(20, len(first.documents) + len(second.documents))

    criterion = InfoNCE(temperature=0.2, extra={"memory": memory})
    third = random_batch(2, contents=8)
    held = memory.values[: int(memory.filled)].clone(), memory.ids[: int(memory.filled)].clone()
    output = criterion(third)
    reference = with_leaves(third)
    owner = torch.full_like(held[1], NO_OWNER)
    expected, _ = oracle.infonce(with_documents(reference, *held, owner), temperature=0.2)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for a, b in zip(gradients(third, output.loss), gradients(reference, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_a_memory_keeps_the_newest_and_waits_for_its_start():
    memory = CrossBatchMemory(size=7, start_step=2)
    prepare(memory, embedding_dim=5, teachers={})
    early = random_batch(0)
    assert memory(early) is early
    assert int(memory.filled) == 0
    batches = [replace(random_batch(seed, dtype=torch.float32), step=2) for seed in (1, 2)]
    for batch in batches:
        memory(batch)
    newest = torch.cat([batch.documents.values for batch in reversed(batches)])[:7]
    assert torch.equal(memory.values, newest.detach())
    other = CrossBatchMemory(size=7, start_step=2)
    prepare(other, embedding_dim=5, teachers={})
    other.load_state_dict(memory.state_dict())  # what a checkpoint does
    assert torch.equal(other.values, memory.values)


def test_a_memory_inside_a_loss_that_truncates_is_refused():
    loss = Matryoshka(inner=InfoNCE(extra={"memory": CrossBatchMemory(size=3)}), dims=[8, 4])
    with pytest.raises(ConfigError, match=r"remembers embeddings of one size.*inside"):
        prepare(loss, embedding_dim=8, teachers={})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossBatchMemory(size=0), "loss.extra.memory.size"),
        (lambda: HardNegativeMixing(pairs=0, lists=0), "not both 0"),
        (lambda: HardNegativeMixing(lists=2), "lists 0 or 1"),
        (lambda: HardNegativeMixing(temperature=0), "loss.extra.mixing.temperature"),
    ],
)
def test_bad_settings_name_the_key(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
