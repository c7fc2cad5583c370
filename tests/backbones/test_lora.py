"""Adapters train, nothing else does, and the merged model is the same model."""

from __future__ import annotations

import pytest
import torch

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens
from tests.helpers.models import tiny_model_dir

TOKENS = RaggedTokens.from_lists([[5, 6, 7, 8, 9], [300, 301], [44]])


def backbone(tmp_path, architecture="qwen3", **options):
    options.setdefault("lora", {"r": 4, "alpha": 8})
    return TransformerBackbone(name=tiny_model_dir(architecture, tmp_path), **options)


def train_a_little(model, steps=3):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    target = torch.randn(TOKENS.num_tokens, model.hidden_size, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        (model(TOKENS) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("architecture", ["bert", "qwen3"])
def test_only_adapters_train_on_every_linear_layer_and_they_begin_as_the_identity(architecture, tmp_path):
    model = backbone(tmp_path, architecture).eval()
    plain = TransformerBackbone(name=model.name).eval()
    torch.testing.assert_close(model(TOKENS), plain(TOKENS))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    linears = [name for name, m in plain.named_modules() if isinstance(m, torch.nn.Linear)]
    assert trainable == {f"{name}.lora_{x}.default.weight" for name in linears for x in "AB"}


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_adapter_gets_a_gradient_under_gradient_checkpointing(kernel, dtype, tmp_path):
    model = backbone(tmp_path, gradient_checkpointing=True, kernel=kernel, dtype=dtype).train()
    (model(TOKENS).square().mean() + model(TOKENS).abs().mean()).backward()  # two forwards, as a step has
    silent = [name for name, p in model.named_parameters() if "lora_B" in name and not p.grad.any()]
    assert silent == []
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_gradient_checkpointing_changes_no_gradient_even_with_dropout(tmp_path):
    gradients = []
    for checkpointing in (False, True):
        model = backbone(tmp_path, lora=None, dropout=0.2, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(7)
        model(TOKENS).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_merged_model_is_plain_gives_the_same_states_and_leaves_training_alone(tmp_path):
    model = backbone(tmp_path)
    train_a_little(model)
    model.eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    states = model(TOKENS)
    model.merged_model().save_pretrained(tmp_path / "merged")
    merged = TransformerBackbone(name=str(tmp_path / "merged")).eval()
    untrained = TransformerBackbone(name=model.name).eval()
    assert torch.nn.functional.cosine_similarity(merged(TOKENS), states).min() > 0.9999
    assert torch.nn.functional.cosine_similarity(untrained(TOKENS), states).min() < 0.999
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in untrained.named_parameters()]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(model(TOKENS), states)


def test_merging_shares_what_no_adapter_touches(tmp_path):
    model = backbone(tmp_path)
    assert model.merged_model().embed_tokens.weight.data_ptr() == model.hf_model.embed_tokens.weight.data_ptr()


def test_chosen_layers_only(tmp_path):
    model = backbone(tmp_path, lora={"r": 2, "target_modules": ["q_proj"]})
    assert all("q_proj" in name for name, p in model.named_parameters() if p.requires_grad)


def test_layers_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone\.lora\.target_modules: .*query_proj.* does not fit"):
        backbone(tmp_path, lora={"r": 2, "target_modules": ["query_proj"]})


def test_half_precision_weights_are_refused_where_they_would_train(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone\.dtype: bfloat16 is for frozen weights"):
        backbone(tmp_path, lora=None, dtype="bfloat16")
