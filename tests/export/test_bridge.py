"""A bridge of two models as a folder: sentence-transformers, our own reader and the trained encoder give the same embeddings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtrain.assemble import build_pooling
from embedtrain.backbones.bridge import BridgeBackbone
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.config.compose import compose_config
from embedtrain.data.collate import collate
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.export import export, load_encoder
from embedtrain.export.sentence_transformers import write_files
from embedtrain.merging.methods.linear import Linear
from embedtrain.merging.states import merge_states
from embedtrain.merging.statistics import gram_matrices
from embedtrain.merging.weights import FolderWeights, write_folder
from embedtrain.types import TrainingExample
from tests.helpers.models import tiny_model_dir
from tests.pooling.test_every_head import SMALL

TEXTS = ["a cat", "the quick brown fox, and the lazy dog", "maps", "two words " * 30]


def encoder(folder, pooling="mean", *, attention="bidirectional", lora=None, learned_tokens=1, **options) -> Encoder:
    torch.manual_seed(0)
    backbone = BridgeBackbone(
        encoder=TransformerBackbone(name=tiny_model_dir("xlm-roberta", folder), lora=lora),
        llm=TransformerBackbone(name=tiny_model_dir("mistral", folder, hidden_size=48), attention=attention, lora=lora),
        learned_tokens=learned_tokens,
    )
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(),
        prompts=Prompts(query="find this:", pool_prompt=pooling == "multi_vector"),
        max_query_length=32,
        max_document_length=32,
    )
    node = {**compose_config([f"pooling={pooling}"]).config["pooling"], **SMALL.get(pooling, {})}
    head = build_pooling(node, backbone, tokenizer.hf)
    made = Encoder(backbone=backbone, pooling=head, tokenizer=tokenizer, **options)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:  # adapters that have learned something
            parameter.data.normal_(std=0.1)
    return made


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("pooling", ["mean", "eos", "layer_average", "projected", "latent_attention", "multi_vector"])
def test_sentence_transformers_and_our_reader_load_it(tmp_path, pooling, attention):
    trained = encoder(tmp_path, pooling, attention=attention, learned_tokens=2)
    report = export(trained, tmp_path / "out", probes=TEXTS)
    assert report.verified_with.startswith("sentence-transformers")
    again = load_encoder(tmp_path / "out")
    assert isinstance(again.backbone, BridgeBackbone)
    for role in ("query", "document"):
        found, wanted = (model.encode_embeddings(TEXTS, role=role).values for model in (again, trained))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_fresh_process_loads_adapters_projection_and_all(tmp_path):
    trained = encoder(tmp_path, lora={"r": 2, "alpha": 4}, projection_dim=8)
    report = export(trained, tmp_path / "out", probes=TEXTS, dtype="bfloat16")
    assert report.worst_cosine > 0.9999
    steps = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [(step["type"].rpartition(".")[2], step["path"]) for step in steps] == [
        *(("Transformer", ""), ("Bridge", "bridge"), ("Pooling", "1_Pooling")),
        *(("Dense", "2_Dense"), ("Normalize", "3_Normalize")),
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "XLMRobertaModel + MistralModel" in card


@pytest.mark.usefixtures("in_process")
def test_the_module_saves_what_it_loaded(tmp_path):
    export(encoder(tmp_path), tmp_path / "out", probes=TEXTS)
    first = SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=True)
    first[1].save(str(tmp_path / "out" / "bridge"))
    second = SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(first.encode(TEXTS), second.encode(TEXTS))


@pytest.mark.usefixtures("in_process")
def test_training_goes_on_from_the_halves_of_a_folder(tmp_path):
    trained = encoder(tmp_path)
    out = tmp_path / "out"
    export(trained, out, probes=TEXTS)
    backbone = BridgeBackbone(
        encoder=TransformerBackbone(name=str(out)),
        llm=TransformerBackbone(name=str(out / "bridge" / "llm"), lora={"r": 2}),
        connector=str(out / "bridge"),
    )
    again = Encoder(backbone=backbone, pooling=trained.pooling, tokenizer=trained.tokenizer)
    torch.testing.assert_close(again.encode(TEXTS), trained.encode(TEXTS), rtol=1e-4, atol=1e-5)


def test_folders_are_merged_tensor_by_tensor_both_models_and_the_connector(tmp_path):
    folders = []
    for number in range(2):
        trained = encoder(tmp_path)
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.05 * number * torch.randn_like(parameter))
        folders.append(tmp_path / f"m{number}")
        folders[-1].mkdir()
        write_files(trained, folders[-1], similarity="cosine", dtype="float32")
    states = [FolderWeights(folder) for folder in folders]
    places = {name.rpartition("/")[0] for name in states[0]}
    assert places == {"", "bridge", "bridge/llm"}
    merged = write_folder(tmp_path / "merged", states[0], merge_states(Linear(weight=[0.5, 0.5]), states))
    found, halves = (dict(load_encoder(folder).named_parameters()) for folder in (merged, folders[0]))
    other = dict(load_encoder(folders[1]).named_parameters())
    assert len(found) > 40
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, (halves[name] + other[name]) / 2)


def test_what_a_merge_measures_of_linear_layers_has_the_names_of_the_folder(tmp_path):
    trained = encoder(tmp_path)
    (tmp_path / "out").mkdir()
    write_files(trained, tmp_path / "out", similarity="cosine", dtype="float32")
    rows = [TrainingExample(query=text, positives=(text,), source="some", row=text) for text in TEXTS]
    grams = gram_matrices(trained, [collate(rows, trained.tokenizer)])
    states = FolderWeights(tmp_path / "out")
    assert {name: gram.shape[0] for name, gram in grams.items()} == {
        name: states.header(name)[0][1] for name in states if name in grams
    }
    assert {
        "bridge/inner.weight",
        "bridge/llm/layers.0.mlp.up_proj.weight",
        "encoder.layer.0.output.dense.weight",
    } <= set(grams)
