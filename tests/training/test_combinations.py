"""Features together, where each is right alone: autocast, checkpointing, LoRA, ranks, accumulation and cached chunks."""

from __future__ import annotations

import copy

import pytest
import torch

from embedtrain.losses.infonce import InfoNCE
from embedtrain.training.step import ContrastiveStep
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny
from tests.training.test_parity import batch_of, encoder_of, flat
from tests.training.test_step import BagEncoder, NaiveInfoNCE, error, gradients, make_batch, micro_batches


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def bag_step(**options) -> ContrastiveStep:
    return ContrastiveStep(encoder=BagEncoder(), loss=NaiveInfoNCE(), chunk_tokens=12, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_model_dir("bert", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
def test_one_autocast_around_everything_loses_no_gradient_of_a_cached_chunk(folder, kernel):
    """Autocast keeps casts of weights; one that was made without a graph must not serve the pass with one."""
    found = []
    for cached_share in (0.0, 1.0):
        encoder = copy.deepcopy(encoder_of(folder, kernel)).train()
        step = ContrastiveStep(encoder=encoder, loss=InfoNCE(), chunk_tokens=36, cached_share=cached_share)
        with bf16():
            step([batch_of(0, 8)], 0)
        assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
        found.append(flat([p.grad for p in step.parameters]))
    assert torch.equal(*found)


@pytest.mark.parametrize("cached_share", [0.0, 1.0])
def test_half_precision_embeddings_of_fp32_weights_give_the_gradient_to_rounding(cached_share):
    exact, half = bag_step(), bag_step(cached_share=cached_share, autocast=bf16)
    exact([make_batch(8)], 0)
    half([make_batch(8)], 0)
    assert all(p.grad.dtype == torch.float32 for p in half.parameters)
    ratio, cosine = error(gradients(half), gradients(exact))
    assert ratio == pytest.approx(1, abs=0.02)
    assert cosine > 0.999


@pytest.mark.parametrize("cached_share", [0.0, 1.0])
def test_a_scaled_loss_scales_every_gradient_and_not_what_is_logged(cached_share):
    """What fp16 does, by a power of two, so that nothing is rounded."""
    plain, scaled = bag_step(), bag_step(cached_share=cached_share, scale=lambda value: value * 1024)
    assert plain([make_batch(8)], 0).loss == scaled([make_batch(8)], 0).loss
    for a, b in zip(gradients(plain), gradients(scaled), strict=True):
        torch.testing.assert_close(b / 1024, a)


def test_with_hard_negatives_alone_accumulation_is_one_big_batch():
    found = []
    for batches in ([make_batch(8)], micro_batches(8, 0, 4)):
        step = ContrastiveStep(encoder=BagEncoder(), loss=InfoNCE(negatives="hard_only"), chunk_tokens=12)
        found.append((step(batches, 0).loss, gradients(step)))
    (loss, whole), (loss_again, parts) = found
    assert loss_again == pytest.approx(loss, rel=1e-5)
    ratio, cosine = error(parts, whole)
    assert ratio == pytest.approx(1, abs=1e-4)
    assert cosine > 0.9999


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
def test_a_cached_step_leaves_the_tokens_as_they_were(folder, kernel):
    batch = batch_of(0, 8)
    before = copy.deepcopy(batch)
    step = ContrastiveStep(
        encoder=encoder_of(folder, kernel).train(), loss=InfoNCE(), chunk_tokens=36, cached_share=1.0
    )
    step([batch], 0)
    for role in ("queries", "documents"):
        for name in ("ids", "offsets", "spans"):
            assert torch.equal(getattr(getattr(batch, role), name), getattr(getattr(before, role), name))


LORA = (
    "backbone.lora={r: 4}",
    "backbone.gradient_checkpointing=true",
    "backbone.dropout=0.0",
    "training.cached_share=0.5",
    "optim.eps=1e-3",  # Adam divides a gradient by its own size: rounding errors of zeros would become updates
)


def test_adapters_under_checkpointing_and_cached_chunks_train_alike_on_one_rank_and_on_two(tmp_path):
    _, expected, _ = train_tiny(tiny_config(tmp_path, *LORA, name="one"))
    for _, found, _ in run_ranks(train_tiny, 2, tiny_config(tmp_path, *LORA, name="two")):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_every_adapter_has_moved_after_one_step(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path, *LORA, "training.max_steps=1"))
    trainer.fit()
    adapters = {name: float(p.detach().norm()) for name, p in trainer.named if "lora_B" in name}  # which begin at zero
    assert adapters
    assert [name for name, norm in adapters.items() if norm == 0] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["ragged", "padded"])
def test_dropout_is_replayed_on_a_gpu_too(folder, kernel):
    found = []
    for cached_share in (0.0, 1.0):
        encoder = copy.deepcopy(encoder_of(folder, kernel, 0.2)).cuda().train()
        step = ContrastiveStep(
            encoder=encoder, loss=InfoNCE(), chunk_tokens=36, cached_share=cached_share, seed=3, device="cuda"
        )
        step([batch_of(0, 8)], 5)
        found.append(flat([p.grad for p in step.parameters]).cpu())
    ratio, cosine = error([found[1]], [found[0]])  # atomic additions come in any order, so not to the bit
    assert ratio == pytest.approx(1, abs=1e-4)
    assert cosine > 0.9999
