"""NV-Embed v1 and v2: published keys and shapes, and the embedding of the published formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, MistralConfig

from embedtrain.errors import CheckpointError
from embedtrain.export import load_encoder
from embedtrain.export.published.nv_embed import NAMES
from tests.export.published.folders import (
    copy_tokenizer,
    edit_json,
    random_tensors,
    tiny_body,
    write_json,
    write_weights,
)
from tests.export.published.reference import block_norm, block_shapes, cross_block, states

LATENTS, HEADS, HEAD_DIM = 5, 2, 6
TEXTS = ["a cat", "The quick brown fox jumps over the lazy dog", "."]
HEAD = "latent_attention_model."


def config(text: dict, *, latents: int, heads: int, head_dim: int) -> dict:
    width = text["hidden_size"]
    return {
        "model_type": "nvembed",
        "architectures": ["NVEmbedModel"],
        "auto_map": {"AutoConfig": "configuration_nvembed.NVEmbedConfig", "AutoModel": "modeling_nvembed.NVEmbedModel"},
        "add_eos": True,
        "add_pad_token": True,
        "is_mask_instruction": True,
        "mask_type": "b",
        "padding_side": "right",
        "text_config": text | {"model_type": "bidir_mistral"},
        "latent_attention_config": {
            "model_type": "latent_attention",
            "num_latents_value": latents,
            "num_cross_heads": heads,
            "hidden_dim": width,
            "latent_dim": width,
            "cross_dim_head": head_dim,
            "mult": 4,
            "output_normalize": True,
        },
    }


@pytest.fixture
def published(tmp_path):
    """(folder, body of transformers without its causal mask, tensors of the head by published name)."""
    source, body = tiny_body("mistral", tmp_path)
    text = json.loads((source / "config.json").read_text())
    folder = tmp_path / "folder with any name"
    write_json(folder / "config.json", config(text, latents=LATENTS, heads=HEADS, head_dim=HEAD_DIM))
    copy_tokenizer(source, folder)
    head = random_tensors(block_shapes(32, LATENTS, HEADS * HEAD_DIM))
    weights = {f"embedding_model.{name}": tensor for name, tensor in body.state_dict().items()}
    write_weights(weights | {f"{HEAD}{name}": tensor for name, tensor in head.items()}, folder)
    # The released forward has neither causal mask nor window.
    plain = MistralConfig(**text | {"sliding_window": None, "is_causal": False})
    other = AutoModel.from_pretrained(source, config=plain, attn_implementation="eager").eval()
    return folder, other, head


def by_formula(body, head, ids: list[int], skipped: int = 0) -> torch.Tensor:
    hidden = states(body, ids)
    latents = block_norm(head, "norm_context", head["latents"])
    made = cross_block(head, block_norm(head, "norm", hidden), latents, HEADS, residual=hidden)
    return F.normalize(made[skipped:].mean(0), dim=0)


def test_the_embedding_is_that_of_the_published_formula(published):
    folder, body, head = published
    encoder = load_encoder(folder)
    assert encoder.backbone.direction == "bidirectional"
    eos = encoder.tokenizer.hf.eos_token_id
    for role in ("query", "document"):
        found = encoder.encode(TEXTS, role=role)
        for text, vector in zip(TEXTS, found, strict=True):
            ids = [*encoder.tokenizer.hf(text)["input_ids"], eos]
            torch.testing.assert_close(vector, by_formula(body, head, ids), rtol=1e-4, atol=1e-5)


def test_an_instruction_is_read_and_not_pooled(published):
    folder, body, head = published
    encoder = load_encoder(folder)
    instruction = "Instruct: find the animal\nQuery:"
    found = encoder.encode(TEXTS[:1], role="query", instructions=[instruction])[0]
    hf = encoder.tokenizer.hf
    ids = [*hf(instruction + TEXTS[0])["input_ids"], hf.eos_token_id]
    expected = by_formula(body, head, ids, skipped=len(hf(instruction)["input_ids"]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_shards_with_an_index_are_read(published):
    folder, body, head = published
    whole = load_encoder(folder).encode(TEXTS)
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    names = list(parts)
    for name, tensor in body.state_dict().items():
        parts[names[0]][f"embedding_model.{name}"] = tensor
    for number, (name, tensor) in enumerate(head.items()):  # some heads' tensors in each
        parts[names[number % 2]][f"{HEAD}{name}"] = tensor
    for name, tensors in parts.items():
        write_weights(tensors, folder, name)
    index = {key: name for name, tensors in parts.items() for key in tensors}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": index})
    torch.testing.assert_close(load_encoder(folder).encode(TEXTS), whole, rtol=0, atol=0)


def rewrite(folder: Path, body, head, change) -> None:
    weights = {f"embedding_model.{name}": tensor for name, tensor in body.state_dict().items()}
    weights |= {f"{HEAD}{name}": tensor for name, tensor in head.items()}
    write_weights(change(dict(weights)), folder)


def without(name: str):
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


TO_Q = f"{HEAD}cross_attend_blocks.0.fn.to_q.weight"
BROKEN = {
    r"not the published keys\. Missing: cross_attend_blocks\.0\.fn\.to_q\.weight": without(TO_Q),
    r"not the published keys\. Unexpected: self_attention\.weight": lambda weights: (
        weights | {f"{HEAD}self_attention.weight": torch.ones(2)}
    ),
    r"not the weights of NV-Embed\. Missing: layers\.1\.mlp\.up_proj\.weight": without(
        "embedding_model.layers.1.mlp.up_proj.weight"
    ),
    r"not the weights of NV-Embed\. Unexpected: .*layers\.1\.mlp\.gate\.bias": lambda weights: (
        weights | {"embedding_model.layers.1.mlp.gate.bias": torch.ones(2)}
    ),
    r"does not fit LatentAttentionPooling.*Shapes: to_query\.weight \[7, 32\], expected \[12, 32\]": lambda weights: (
        weights | {TO_Q: torch.ones(7, 32)}
    ),
    r"not the weights of NV-Embed\. Shapes: norm\.weight \[31\], expected \[32\]": lambda weights: (
        weights | {"embedding_model.norm.weight": torch.ones(31)}
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_key_that_is_missing_unknown_or_of_another_shape_is_named(message, published):
    folder, body, head = published
    rewrite(folder, body, head, BROKEN[message])
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)


def test_what_the_released_code_would_do_otherwise_is_refused(published):
    folder, *_ = published
    edit_json(folder / "config.json", padding_side="left")
    with pytest.raises(CheckpointError, match=r"config\.json of NV-Embed has \{'padding_side': 'left'\}"):
        load_encoder(folder)


def test_at_its_real_size_every_shape_is_the_published_one(tmp_path):
    text = MistralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=32768,
    ).to_dict()
    source, _ = tiny_body("mistral", tmp_path)
    write_json(tmp_path / "real" / "config.json", config(text, latents=512, heads=8, head_dim=4096))
    copy_tokenizer(source, tmp_path / "real")
    with torch.device("meta"):
        encoder = load_encoder(tmp_path / "real", backbone={"weights": "random"})
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.pooling.state_dict().items()}
    expected = block_shapes(4096, 512, 32768)
    assert shapes == {NAMES[name]: shape for name, shape in expected.items()}
    assert expected["cross_attend_blocks.0.fn.to_kv.weight"] == (65536, 4096)
    assert expected["cross_attend_blocks.1.fn.net.0.weight"] == (32768, 4096)
    assert round(encoder.num_parameters() / 1e6) == 7851  # arXiv:2405.17428, table 1
    assert encoder.tokenizer.max_length["document"] == 128  # of the tokenizer here; the body has 32768 positions
