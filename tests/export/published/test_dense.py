"""Linear layers behind the pooling: EmbeddingGemma's two, one of Stella's several, and embeddings cut by `truncate_dim`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import AutoModel

from embedtrain.errors import CheckpointError
from embedtrain.export import export, load_encoder
from tests.export.published.folders import edit_json, random_tensors, tiny_body, write_json, write_weights
from tests.export.published.reference import states
from tests.helpers.models import tiny_model_dir

TEXTS = ["a cat", "The quick brown fox", "Straße 東京", "."]
IDENTITY = "torch.nn.modules.linear.Identity"
PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
}


def dense(folder: Path, wide: int, out: int, *, bias: bool, seed: int) -> dict[str, torch.Tensor]:
    config = {"in_features": wide, "out_features": out, "bias": bias, "activation_function": IDENTITY}
    write_json(folder / "config.json", config)
    shapes = {"linear.weight": (out, wide)} | ({"linear.bias": (out,)} if bias else {})
    weights = random_tensors(shapes, seed=seed)
    write_weights(weights, folder)
    return weights


def gemma(tmp_path: Path) -> tuple[Path, object, list[torch.Tensor]]:
    """EmbeddingGemma's folder: a bidirectional Gemma 3, mean, H -> 4H -> H without bias and activation, norm."""
    source, body = tiny_body("gemma3_text", tmp_path, use_bidirectional_attention=True)
    steps = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    paths = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{step}"}
        for i, (step, path) in enumerate(zip(steps, paths, strict=True))
    ]
    write_json(source / "modules.json", modules)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "include_prompt": True}
    write_json(source / "1_Pooling" / "config.json", pooling)
    first = dense(source / "2_Dense", 32, 128, bias=False, seed=1)["linear.weight"]
    second = dense(source / "3_Dense", 128, 32, bias=False, seed=2)["linear.weight"]
    write_json(source / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    settings = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(source / "config_sentence_transformers.json", settings)
    return source, body, [first, second]


def test_embedding_gemma_is_the_published_formula(tmp_path):
    folder, body, (first, second) = gemma(tmp_path)
    encoder = load_encoder(folder)
    assert encoder.backbone.direction == "bidirectional"
    for role in ("query", "document"):
        found = encoder.encode(TEXTS, role=role)
        for text, vector in zip(TEXTS, found, strict=True):
            ids = encoder.tokenizer.hf(PROMPTS[role] + text)["input_ids"]
            expected = F.normalize(second @ (first @ states(body, ids).mean(0)), dim=0)
            torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


def test_embedding_gemma_is_what_sentence_transformers_makes_of_it(tmp_path):
    folder, *_ = gemma(tmp_path)
    expected = SentenceTransformer(str(folder), device="cpu").encode_query(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(load_encoder(folder).encode(TEXTS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("in_process")
def test_what_was_read_can_be_written_and_read_again(tmp_path):
    folder, *_ = gemma(tmp_path)
    encoder = load_encoder(folder)
    assert export(encoder, tmp_path / "again", probes=TEXTS).worst_cosine > 0.99999
    torch.testing.assert_close(
        load_encoder(tmp_path / "again").encode(TEXTS), encoder.encode(TEXTS), rtol=1e-4, atol=1e-5
    )


def test_embedding_gemma_at_its_real_sizes(tmp_path):
    folder, *_ = gemma(tmp_path)
    edit_json(folder / "config.json", hidden_size=768, head_dim=256, num_attention_heads=3, num_key_value_heads=1)
    edit_json(folder / "2_Dense" / "config.json", in_features=768, out_features=3072)
    edit_json(folder / "3_Dense" / "config.json", in_features=3072, out_features=768)
    write_weights({"linear.weight": torch.zeros(3072, 768)}, folder / "2_Dense")
    write_weights({"linear.weight": torch.zeros(768, 3072)}, folder / "3_Dense")
    with torch.device("meta"):
        encoder = load_encoder(folder, backbone={"weights": "random"})
    assert tuple(encoder.projection.weight.shape) == (768, 768)  # of the product


def test_layers_that_do_not_follow_each_other_are_named(tmp_path):
    folder, *_ = gemma(tmp_path)
    dense(folder / "3_Dense", 100, 32, bias=False, seed=2)
    with pytest.raises(CheckpointError, match="3_Dense reads 100 dimensions, after 128"):
        load_encoder(folder)


def stella(tmp_path: Path, dims=(8, 16, 64)) -> tuple[Path, dict[int, dict[str, torch.Tensor]]]:
    """stella_en_v5's folder: mean, a Dense with bias for each of several dimensions, modules.json names one; no Normalize."""
    transformer = st.Transformer(tiny_model_dir("qwen2", tmp_path, is_causal=False), max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, st.Pooling(32)], prompts={"s2p_query": "Instruct: find\nQuery: "})
    folder = tmp_path / "stella"
    model.save(str(folder), create_model_card=False)
    weights = {dim: dense(folder / f"2_Dense_{dim}", 32, dim, bias=True, seed=dim) for dim in dims}
    named = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense_16", "Dense")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(named)
    ]
    write_json(folder / "modules.json", modules)
    return folder, weights


@pytest.mark.parametrize("dim", [None, 8, 16, 64])
def test_stella_has_a_layer_for_each_of_its_dimensions(dim, tmp_path):
    folder, weights = stella(tmp_path)
    encoder = load_encoder(folder, dim=dim)
    assert encoder.backbone.direction == "bidirectional"
    own, body = weights[dim or 16], AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = encoder.tokenizer.hf(text)["input_ids"]
        mean = states(body, ids).mean(0)
        torch.testing.assert_close(vector, own["linear.weight"] @ mean + own["linear.bias"], rtol=1e-4, atol=1e-5)


def test_a_dimension_that_stella_has_no_layer_for_is_refused(tmp_path):
    folder, _ = stella(tmp_path)
    with pytest.raises(CheckpointError, match="no layer for 32 dimensions; there are 8, 16, 64"):
        load_encoder(folder, dim=32)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("has_dense", [True, False])
def test_truncate_dim_is_read(normalize, has_dense, tmp_path):
    torch.manual_seed(0)
    parts = [st.Transformer(tiny_model_dir("bert", tmp_path), max_seq_length=20), st.Pooling(32)]
    parts += [st.Dense(32, 24, activation_function=torch.nn.Identity())] if has_dense else []
    parts += [st.Normalize()] if normalize else []
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "model"), create_model_card=False)
    edit_json(tmp_path / "model" / "config_sentence_transformers.json", truncate_dim=6)
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu", truncate_dim=6).encode(
        TEXTS, convert_to_tensor=True
    )
    encoder = load_encoder(tmp_path / "model")
    found = encoder.encode(TEXTS)
    if normalize:  # ours have length 1 again; the cosine is the same
        assert torch.allclose(found.norm(dim=1), torch.ones(len(TEXTS)))
        expected = F.normalize(expected, dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert load_encoder(tmp_path / "model", dim=4).embedding_dim == 4


def test_more_dimensions_than_there_are_cannot_be_kept(tmp_path):
    parts = [st.Transformer(tiny_model_dir("bert", tmp_path), max_seq_length=20), st.Pooling(32)]
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "model"), create_model_card=False)
    with pytest.raises(CheckpointError, match=r"a layer of \[32, 32\], where \[64, 32\] was expected"):
        load_encoder(tmp_path / "model", dim=64)
