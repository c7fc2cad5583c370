"""Texts -> embeddings: order, modes, edges."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.types import RaggedTokens
from tests.helpers.models import minilm_dir, tiny_model_dir

TEXTS = ["a cat", "the quick brown fox jumps over the lazy dog", "", "maps", "two words " * 40]


def encoder(folder, *, pooling=None, backbone=None, **options):
    backbone = TransformerBackbone(name=folder, **(backbone or {}))
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(), prompts=Prompts(), max_query_length=64, max_document_length=64, append_eos=False
    )
    return Encoder(backbone=backbone, pooling=pooling or MeanPooling(), tokenizer=tokenizer, **options)


def test_the_same_embeddings_as_sentence_transformers():
    reference = SentenceTransformer(minilm_dir(), device="cpu")
    reference.max_seq_length = 64
    ours = encoder(minilm_dir()).encode(TEXTS)
    torch.testing.assert_close(ours, reference.encode(TEXTS, convert_to_tensor=True), rtol=1e-4, atol=1e-5)


def test_order_budget_and_company_do_not_change_an_embedding():
    model = encoder(minilm_dir())
    together = model.encode(TEXTS)
    torch.testing.assert_close(model.encode(TEXTS, chunk_tokens=1), together, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.encode(TEXTS[::-1]).flip(0), together, rtol=1e-4, atol=1e-6)
    alone = torch.cat([model.encode([text]) for text in TEXTS])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)


def test_more_texts_than_are_tokenised_at_once(tmp_path, monkeypatch):
    model = encoder(tiny_model_dir("bert", tmp_path))
    whole = model.encode(TEXTS)
    monkeypatch.setattr("embedtrain.encoder._TEXTS_AT_ONCE", 2)
    torch.testing.assert_close(model.encode(TEXTS), whole)


def test_no_texts_give_an_empty_matrix(tmp_path):
    assert encoder(tiny_model_dir("bert", tmp_path), projection_dim=5).encode([]).shape == (0, 5)


def test_encode_has_no_dropout_and_no_gradient_and_restores_the_mode(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path)).train()
    first = model.encode(TEXTS)
    assert torch.equal(model.encode(TEXTS), first)
    assert not first.requires_grad
    assert model.training
    assert model.backbone.hf_model.training
    model.eval().encode(TEXTS)
    assert not model.training


def test_an_error_inside_encode_restores_the_mode_too(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path)).train()
    model.backbone.config.vocab_size, word_embeddings = 1, model.backbone.hf_model.get_input_embeddings()
    word_embeddings.weight = torch.nn.Parameter(word_embeddings.weight[:1])
    with pytest.raises(IndexError):
        model.encode(TEXTS)
    assert model.training


def test_encode_works_inside_inference_mode(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path))
    outside = model.encode(TEXTS)
    with torch.inference_mode():
        assert torch.equal(model.encode(TEXTS), outside)


def test_embeddings_are_on_the_unit_sphere_in_fp32_also_under_autocast(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), projection_dim=7)
    tokens, _ = model.tokenizer.encode(TEXTS, role="query")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(tokens)
    assert embeddings.normalized
    assert embeddings.values.dtype == torch.float32
    torch.testing.assert_close(embeddings.values.norm(dim=1), torch.ones(len(TEXTS)))
    embeddings.values[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_zero_vector_is_no_nan_and_has_no_nan_gradient(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), projection_dim=3)
    torch.nn.init.zeros_(model.projection.weight)
    torch.nn.init.zeros_(model.projection.bias)
    values = model(RaggedTokens.from_lists([[5, 6]])).values
    assert (values == 0).all()
    values.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_without_norm_the_embedding_is_the_projected_mean(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), normalize=False, projection_dim=4).eval()
    tokens = RaggedTokens.from_lists([[5, 6, 7], [8]])
    states = model.backbone(tokens)
    expected = model.projection(torch.stack([states[:3].mean(0), states[3]]))
    embeddings = model(tokens)
    assert not embeddings.normalized
    torch.testing.assert_close(embeddings.values, expected)


def test_a_head_that_needs_layers_gets_them(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), normalize=False, pooling=FirstLastPooling()).eval()
    ids = [5, 6, 7]
    hidden = model.backbone(RaggedTokens.from_lists([ids]), all_layers=True)
    expected = ((hidden[1] + hidden[-1]) / 2).mean(0, keepdim=True)
    torch.testing.assert_close(model(RaggedTokens.from_lists([ids])).values, expected)


def test_parameters_are_counted(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), projection_dim=4, backbone={"lora": {"r": 2}})
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert model.num_trainable() == adapters + 4 * 32 + 4
    assert model.num_parameters() == sum(p.numel() for p in model.parameters()) > model.num_trainable()


def test_encode_in_half_precision_is_close_and_gives_fp32(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path))
    full = model.encode(TEXTS)
    model.encode_dtype = torch.bfloat16
    half = model.encode(TEXTS)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.cosine_similarity(half, full).min() > 0.99
