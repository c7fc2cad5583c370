"""Texts -> embeddings: order, modes, edges."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtrain.backbones.facts import punctuation_ids
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
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


def multi_vector(model, **options):
    return MultiVectorPooling(
        hidden_size=32, punctuation_ids=punctuation_ids(model.tokenizer.hf), **{"dim": 5, **options}
    )


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "qwen3"])
def test_the_view_of_a_layer_is_the_embedding_of_the_model_cut_after_it(architecture, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path, num_hidden_layers=4, layer_types=None)
    model = encoder(folder, projection_dim=7).eval()
    model.read_layers([3, 1, 4])
    texts = [text for text in TEXTS if text]
    whole = model.encode_embeddings(texts, views=True)
    assert list(whole.views) == list(model.view_names) == ["layer_1", "layer_3", "layer_4"]
    assert torch.equal(whole.views["layer_4"].values, whole.values)
    body = model.backbone.hf_model
    stack = body.encoder.layer if architecture == "bert" else body.layers
    for depth in (3, 1):
        del stack[depth:]
        body.config.num_hidden_layers = depth
        torch.testing.assert_close(model.encode(texts), whole.views[f"layer_{depth}"].values)


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_is_not_there_is_refused(layer, tmp_path):
    with pytest.raises(ConfigError, match=rf"it reads layer {layer}, but .* has the layers 1 to 2"):
        encoder(tiny_model_dir("bert", tmp_path)).read_layers([layer])


def test_a_layer_by_itself_and_a_pooling_of_several_are_refused_together(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), pooling=FirstLastPooling())
    with pytest.raises(ConfigError, match="FirstLastPooling reads several layers at once"):
        model.read_layers([1])
    model.read_layers([2])
    made = model.encode_embeddings(TEXTS, views=True)
    assert torch.equal(made.views["layer_2"].values, made.values)


def test_several_heads_on_the_same_states(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), projection_dim=7).eval()
    model.views["cls"] = ClsPooling()
    model.views["tokens"] = multi_vector(model)
    tokens, _ = model.tokenizer.encode(TEXTS, role="document")
    states = model.backbone(tokens)
    made = model(tokens)
    assert model.view_names == tuple(made.views) == ("cls", "tokens")
    torch.testing.assert_close(made.views["cls"].values, torch.nn.functional.normalize(states[tokens.offsets[:-1]]))
    torch.testing.assert_close(made.views["tokens"].values.norm(dim=1), torch.ones(len(made.views["tokens"].values)))
    assert made.views["tokens"].normalized
    assert made.values.shape == (len(TEXTS), 7)
    assert model(tokens, views=False).views == {}
    sum(tensor.sum() for tensor in made.tensors()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_token_vectors_do_not_depend_on_order_budget_or_company(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path))
    model.pooling = multi_vector(model, dim=None)
    together = model.encode_embeddings(TEXTS, role="document")
    assert len(together) == len(TEXTS)
    for role, texts in (("query", TEXTS), ("document", TEXTS)):
        alone = [model.encode_embeddings([text], role=role) for text in texts]
        made = model.encode_embeddings(texts, role=role, chunk_tokens=20)
        assert made.offsets.diff().tolist() == [len(one.values) for one in alone]
        torch.testing.assert_close(made.values, torch.cat([one.values for one in alone]))
    back = model.encode_embeddings(TEXTS[::-1], role="document").select(torch.arange(len(TEXTS)).flip(0))
    torch.testing.assert_close(back.values, together.values)
    with pytest.raises(ConfigError, match="MultiVectorPooling gives several vectors per text"):
        model.encode(TEXTS)


def test_no_texts_have_the_form_of_some(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), projection_dim=7)
    model.views["tokens"] = multi_vector(model)
    model.read_layers([1])
    nothing, some = model.encode_embeddings([], views=True), model.encode_embeddings(["a"], views=True)
    assert nothing.views.keys() == some.views.keys()
    for empty, full in [(nothing, some), *((nothing.views[name], some.views[name]) for name in some.views)]:
        assert len(empty) == 0
        assert (empty.dim, empty.normalized, empty.offsets is None) == (full.dim, full.normalized, full.offsets is None)
