"""Two encoders and a context in a folder: read by plain sentence-transformers and by ours, and another corpus given to both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtrain.backbones.contextual import ContextualBackbone
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError, ConfigError
from embedtrain.export.load import load_encoder, take_heads
from embedtrain.export.sentence_transformers import check_exportable, export
from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.latent_attention import LatentAttentionPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
from tests.helpers.models import tiny_model_dir

TEXTS = ["a cat", "the quick brown fox", "maps; maps."]
CORPUS = ["rivers run into the sea", "a stone", "the fox sleeps", "birds and fish", "seven"]


def encoder(folder, *, pooling=None, backbone=ContextualBackbone, pool_prompt=True, projection_dim=None, **options):
    torch.manual_seed(0)
    sizes = {"num_context": 4, "num_prompts": 2, **options} if backbone is ContextualBackbone else {}
    made = backbone(name=str(folder), **sizes)
    tokenizer = TextTokenizer(
        tokenizer=made.tokenizer(),
        prompts=Prompts(query="search_query:", document="search_document:", pool_prompt=pool_prompt),
        max_query_length=24,
        max_document_length=24,
    )
    found = Encoder(backbone=made, pooling=pooling or MeanPooling(), tokenizer=tokenizer, projection_dim=projection_dim)
    return found.eval()


def theirs(folder) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


def first_of(model: SentenceTransformer) -> Any:
    return model[0]


def assert_same(found, expected):
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("roberta", {"pooling": ClsPooling()}),
        ("nomic_bert", {"pool_prompt": False, "projection_dim": 8}),
        ("nomic_bert", {"pooling": LatentAttentionPooling(hidden_size=32, num_latents=3, num_heads=2, head_dim=8)}),
    ],
    ids=["bert", "roberta, cls", "nomic, prompt not pooled, projection", "nomic, latent attention"],
)
def test_the_folder_gives_the_embeddings_behind_its_context_and_behind_another_corpus(tmp_path, family, options):
    model = encoder(tiny_model_dir(family, tmp_path), **options)
    model.set_context(CORPUS[:3])
    export(model, tmp_path / "model", probes=TEXTS)  # compared with sentence-transformers
    published, back = theirs(tmp_path / "model"), load_encoder(tmp_path / "model")
    expected = model.encode(TEXTS, role="document")
    assert_same(published.encode_document(TEXTS), expected)
    assert_same(back.encode(TEXTS, role="document"), expected)
    for reader in (model, back):
        reader.set_context(CORPUS)
    first_of(published).set_context(CORPUS)
    again = model.encode(TEXTS, role="query")
    assert (again - model.encode(TEXTS, role="document")).abs().max() > 1e-3
    assert_same(published.encode_query(TEXTS), again)
    assert_same(back.encode(TEXTS, role="query"), again)
    assert not torch.allclose(model.encode(TEXTS, role="document"), expected, atol=1e-3)


def test_a_fresh_process_without_embedtrain_reads_it(tmp_path):
    model = encoder(tiny_model_dir("nomic_bert", tmp_path))
    model.set_context(CORPUS)
    report = export(model, tmp_path / "model", probes=TEXTS)
    assert report.verified_with.startswith("sentence-transformers")
    assert any("model[0].set_context(documents)" in note for note in report.notes)


@pytest.mark.usefixtures("in_process")
def test_without_a_context_the_folder_has_the_null_vector_and_what_they_save_is_read_again(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path))
    export(model, tmp_path / "model", probes=TEXTS)
    published = theirs(tmp_path / "model")
    nothing = model.encode(TEXTS)
    assert_same(published.encode_query(TEXTS), nothing)
    first_of(published).set_context(CORPUS)
    behind = published.encode_query(TEXTS)
    published.save(str(tmp_path / "saved"))
    assert_same(theirs(tmp_path / "saved").encode_query(TEXTS), torch.as_tensor(behind))
    first_of(published).set_context(None)
    assert_same(published.encode_query(TEXTS), nothing)


@pytest.mark.usefixtures("in_process")
def test_a_run_that_begins_from_such_a_folder_takes_both_encoders_and_what_is_around_them(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path))
    with torch.no_grad():
        for parameter in model.backbone.get_submodule("first").parameters():
            parameter.add_(0.01)  # so that the two differ
    export(model, tmp_path / "model", probes=TEXTS)
    new = encoder(tmp_path / "model")
    with torch.no_grad():
        new.backbone.get_parameter("context_layers.null").zero_()
    take_heads(new, tmp_path / "model")
    for (name, own), published in zip(new.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, published, msg=name)
    with pytest.raises(ConfigError, match="backbone=contextual"):
        take_heads(encoder(tmp_path / "model", backbone=TransformerBackbone), tmp_path / "model")
    with pytest.raises(ConfigError, match="to_prompts"):
        take_heads(encoder(tiny_model_dir("bert", tmp_path), num_prompts=3), tmp_path / "model")
    (tmp_path / "model" / "context_encoder").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="context_encoder/ is missing"):
        load_encoder(tmp_path / "model")


@pytest.mark.parametrize(
    "pooling", [FirstLastPooling(), MultiVectorPooling(hidden_size=32, dim=8, punctuation_ids=[])], ids=type
)
def test_heads_that_the_folder_cannot_say_are_refused(tmp_path, pooling):
    with pytest.raises(ConfigError, match="cannot be exported with a contextual backbone"):
        check_exportable(encoder(tiny_model_dir("bert", tmp_path), pooling=pooling))
