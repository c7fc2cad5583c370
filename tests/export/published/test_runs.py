"""What a user types: `backbone.name=<published folder> pooling=...` begins from its heads, `model=<folder>` is read whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

from embedtrain.assemble import build_encoder
from embedtrain.cli import main
from embedtrain.config.compose import compose_config
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.export import export, load_encoder
from embedtrain.export.published.nv_embed import NAMES
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.types import RaggedTokens
from tests.export.published.folders import random_tensors
from tests.export.published.reference import block_norm, block_shapes, cross_block
from tests.export.published.test_bge_m3 import published as bge_m3  # noqa: F401 - a fixture
from tests.export.published.test_dense import stella
from tests.export.published.test_nv_embed import published as nv_embed  # noqa: F401 - a fixture
from tests.export.published.test_token_vectors import pylate, stanford
from tests.export.test_other_kinds import with_head
from tests.helpers.models import tiny_model_dir

SIZES = ["pooling.num_latents=5", "pooling.num_heads=2"]
LENGTHS = ["encoder.max_query_length=24", "encoder.max_document_length=24"]


def built(folder: Path, *overrides: str):
    torch.manual_seed(7)
    composed = compose_config([f"backbone.name={folder}", *LENGTHS, *overrides])
    return build_encoder(composed.config)


def test_a_run_from_nv_embed_begins_with_its_latents(nv_embed):  # noqa: F811
    folder, _, head = nv_embed
    encoder = built(folder, "pooling=latent_attention", "pooling.head_dim=6", "encoder.append_eos=true", *SIZES)
    for name, tensor in head.items():
        assert torch.equal(encoder.pooling.state_dict()[NAMES[name]], tensor)
    texts = ["a cat", "The quick brown fox"]
    torch.testing.assert_close(encoder.encode(texts), load_encoder(folder).encode(texts), rtol=1e-4, atol=1e-5)
    assert encoder.num_trainable() == encoder.num_parameters()


def test_other_sizes_than_the_folders_are_refused_by_name(nv_embed):  # noqa: F811
    folder, *_ = nv_embed
    with pytest.raises(ConfigError, match=r"pooling: .*latents \[5, 32\], expected \[6, 32\].*Give it the sizes"):
        built(folder, "pooling=latent_attention", "pooling.head_dim=6", "pooling.num_heads=2", "pooling.num_latents=6")


def test_another_pooling_than_the_folders_is_new(nv_embed):  # noqa: F811
    folder, *_ = nv_embed
    assert built(folder, "pooling=mean").backbone.direction == "bidirectional"


def test_a_run_from_bge_m3_begins_with_both_of_its_heads(bge_m3):  # noqa: F811
    folder, sparse, tokens = bge_m3
    views = [
        "+pooling@encoder.views.sparse=bge_m3_sparse",
        "+pooling@encoder.views.tokens=bge_m3_multi_vector",
        "encoder.views.tokens.dim=32",
    ]
    encoder = built(folder, "pooling=cls", *views)
    assert torch.equal(encoder.views["sparse"].linear.weight, sparse["weight"])
    assert torch.equal(encoder.views["tokens"].linear.bias, tokens["bias"])
    alone = built(folder, "pooling=bge_m3_multi_vector", "pooling.dim=32")
    assert torch.equal(alone.pooling.linear.weight, tokens["weight"])


def test_a_run_from_colbert_begins_with_its_layer_and_lets_masks_be_seen(tmp_path):
    folder, _, linear = stanford(tmp_path, attend_to_mask_tokens=False)
    encoder = built(folder, "pooling=multi_vector", "pooling.dim=8", "encoder.query_augmentation=16")
    assert torch.equal(encoder.pooling.linear.weight, linear)


def test_a_run_from_pylate_begins_with_its_layer(tmp_path):
    folder = pylate(tmp_path, attend_to_expansion_tokens=False)
    encoder = built(folder, "pooling=multi_vector", "pooling.dim=8")
    assert torch.equal(
        encoder.pooling.linear.weight, load_file(folder / "1_Dense" / "model.safetensors")["linear.weight"]
    )


def test_a_run_from_stella_begins_with_the_layer_of_its_dimensions(tmp_path):
    folder, weights = stella(tmp_path)
    encoder = built(folder, "encoder.projection_dim=64")
    assert torch.equal(encoder.projection.weight, weights[64]["linear.weight"])
    assert torch.equal(encoder.projection.bias, weights[64]["linear.bias"])
    fresh = built(folder, "encoder.projection_dim=20")  # no such layer
    assert fresh.projection.weight.shape == (20, 32)


@pytest.mark.usefixtures("in_process")
def test_a_run_from_our_own_folder_begins_with_its_head(tmp_path):
    encoder = with_head(tmp_path, MultiVectorPooling, dim=8)
    export(encoder, tmp_path / "model", probes=["a"])
    again = built(tmp_path / "model", "pooling=multi_vector", "pooling.dim=8")
    assert torch.equal(again.pooling.linear.weight, encoder.pooling.linear.weight)


def test_random_weights_are_random_to_the_head(bge_m3):  # noqa: F811
    folder, _, tokens = bge_m3
    encoder = built(folder, "backbone.weights=random", "pooling=bge_m3_multi_vector", "pooling.dim=32")
    assert not torch.equal(encoder.pooling.linear.weight, tokens["weight"])


# ------------------------------------------------------------------------------------ Pooling and Attention (2409.02727)


def pooling_and_attention(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """An adapter of peft, and the trainable pooling of several layers as its authors save it."""
    base = AutoModel.from_pretrained(tiny_model_dir("mistral", tmp_path))
    folder = tmp_path / "trained"
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(folder)
    head = random_tensors(block_shapes(32, 5, 8) | {"pos_emb.weight": (2, 32)})
    torch.save(head, folder / "attn_pool.pt")
    return folder, head


def test_a_run_from_pooling_and_attention_is_the_published_formula(tmp_path):
    """Latents ask, the layers' means answer: each layer's mean over tokens plus its embedding."""
    folder, head = pooling_and_attention(tmp_path)
    encoder = built(
        folder, "pooling=multi_layer", "pooling.head_dim=4", "backbone.attention=bidirectional", *SIZES
    ).eval()
    tokens = RaggedTokens.from_lists([[5, 17, 99], [7, 8]])
    with torch.no_grad():
        found = encoder(tokens).values
        layers = encoder.backbone(tokens, all_layers=True)[1:]
    for n, rows in enumerate([slice(0, 3), slice(3, 5)]):
        means = torch.stack([states[rows].mean(0) for states in layers]) + head["pos_emb.weight"]
        # `norm` is of what is read, `norm_context` of the latents.
        asked = block_norm(head, "norm_context", head["latents"])
        read = block_norm(head, "norm", means)
        made = cross_block(head, asked, read, heads=2, residual=head["latents"]).mean(0)
        torch.testing.assert_close(found[n], made / made.norm(), rtol=1e-4, atol=1e-5)


def test_alone_it_does_not_say_which_of_the_five_models_it_is(tmp_path):
    folder, _ = pooling_and_attention(tmp_path)
    with pytest.raises(CheckpointError, match="does not say whether attention is bidirectional"):
        load_encoder(folder)


# -------------------------------------------------------------------------------------------------------- the commands


def test_embed_takes_a_published_folder_and_a_dimension(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder, _ = stella(tmp_path)
    Path("texts.txt").write_text("a cat\nThe quick brown fox\n")
    assert main(["embed", f"model={folder}", "input=texts.txt", "output=v.npy", "dim=64"]) == 0
    expected = load_encoder(folder, dim=64).encode(["a cat", "The quick brown fox"])
    np.testing.assert_allclose(np.load("v.npy"), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert main(["embed", f"model={folder}", "input=texts.txt", "output=v.npy", "dim=few"]) != 0
    assert "dim=few: expected a number of dimensions" in capsys.readouterr().err
