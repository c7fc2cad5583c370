from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import CheckpointError
from embedtrain.export.load import load_encoder, take_heads
from embedtrain.export.sentence_transformers import export
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.projected import ProjectedPooling
from tests.helpers.models import tiny_model_dir

pytestmark = pytest.mark.usefixtures("in_process")
TEXTS = ["a cat", "the quick brown fox", "maps; maps."]


def encoder(folder, *, seed=0, views=None, **options) -> Encoder:
    backbone = TransformerBackbone(name=str(folder))
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(), prompts=Prompts(), max_query_length=24, max_document_length=24
    )
    torch.manual_seed(seed)
    pooling = ProjectedPooling(hidden_size=32, **{"sizes": [48, 16], "pooling": MeanPooling(), **options})
    return Encoder(backbone=backbone, pooling=pooling, tokenizer=tokenizer, views=views).eval()


@pytest.mark.parametrize("bias", [False, True])
def test_its_folder_is_one_dense_for_each_layer_and_is_read_as_the_same_map(tmp_path, bias):
    model = encoder(tiny_model_dir("bert", tmp_path), bias=bias)
    export(model, tmp_path / "model", probes=TEXTS)  # compared with sentence-transformers
    modules = [type(module).__name__ for module in SentenceTransformer(str(tmp_path / "model"), device="cpu")]
    assert modules == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    back = load_encoder(tmp_path / "model")
    torch.testing.assert_close(back.encode(TEXTS), model.encode(TEXTS), rtol=1e-5, atol=1e-5)


def test_a_run_that_begins_from_such_a_folder_takes_each_layer(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path))
    export(model, tmp_path / "model", probes=TEXTS)
    new = encoder(tmp_path / "model", seed=1)
    take_heads(new, tmp_path / "model")
    for own, published in zip(new.pooling.parameters(), model.pooling.parameters(), strict=True):
        assert torch.equal(own, published)
    other = encoder(tmp_path / "model", seed=1, sizes=[16])
    before = [parameter.clone() for parameter in other.pooling.parameters()]
    take_heads(other, tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(other.pooling.parameters(), before, strict=True))


def test_heads_side_by_side_come_back_from_a_folder(tmp_path):
    views = {"short": ProjectedPooling(hidden_size=32, sizes=[8], bias=True, pooling=MeanPooling())}
    model = encoder(tiny_model_dir("bert", tmp_path), views=views)
    export(model, tmp_path / "model", probes=TEXTS)
    ours, theirs = (m.encode_embeddings(TEXTS, views=True) for m in (model, load_encoder(tmp_path / "model")))
    assert ours.view("short").dim == 8
    torch.testing.assert_close(theirs.view("short").values, ours.view("short").values, rtol=1e-5, atol=1e-5)


def test_layers_with_a_relu_between_them_are_read_as_such_by_both_and_by_a_run_that_begins_there(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), bias=True, activation="relu")
    export(model, tmp_path / "model", probes=TEXTS)  # compared with sentence-transformers
    back = load_encoder(tmp_path / "model")
    assert isinstance(back.pooling, ProjectedPooling)
    assert back.pooling.activation == "relu"
    torch.testing.assert_close(back.encode(TEXTS), model.encode(TEXTS), rtol=1e-5, atol=1e-5)
    new = encoder(tmp_path / "model", seed=1, bias=True, activation="relu")
    take_heads(new, tmp_path / "model")
    for own, published in zip(new.pooling.parameters(), model.pooling.parameters(), strict=True):
        assert torch.equal(own, published)
    config = tmp_path / "model" / "2_Dense" / "config.json"
    config.write_text(config.read_text().replace("activation.ReLU", "activation.Tanh"))
    with pytest.raises(CheckpointError, match=r"Dense with torch\.nn\.modules\.activation\.Tanh cannot be read"):
        load_encoder(tmp_path / "model")
