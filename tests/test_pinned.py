"""The published models that ship as facts: each builds without a hub and storage, and has the published number of weights."""

from __future__ import annotations

import json

import pytest
import torch

from embedtrain import pinned as module
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError
from embedtrain.pinned import FOLDER, pinned, stand_in


def all_pinned():
    """The names of all models that ship."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*.json"))


def known(name):
    """What ships of a model; fails where nothing does."""
    model = pinned(name)
    assert model is not None, f"{FOLDER / name}.json"
    return model


def shape(model):
    """What a backbone is built from: models that share it are built once."""
    return json.dumps([model.config, model.tokens, model.longest], sort_keys=True)


BY_SHAPE = {shape(known(name)): name for name in reversed(all_pinned()) if known(name).config}

# Weights in millions without a pooler and without an output layer of its own, which embeddings have no use for.
# From model cards and papers; of decoders with an untied output layer, the card's number less vocabulary x hidden size.
PUBLISHED = {
    "google-bert/bert-base-uncased": 110,
    "google-bert/bert-large-uncased": 335,
    "google-bert/bert-base-multilingual-cased": 178,
    "FacebookAI/roberta-base": 125,
    "FacebookAI/xlm-roberta-base": 278,
    "FacebookAI/xlm-roberta-large": 560,
    "microsoft/MiniLM-L12-H384-uncased": 33.4,
    "nreimers/MiniLM-L6-H384-uncased": 22.7,
    "microsoft/mpnet-base": 109,
    "distilbert/distilbert-base-uncased": 66,
    "sentence-transformers/LaBSE": 471,
    "answerdotai/ModernBERT-base": 149,
    "answerdotai/ModernBERT-large": 395,
    "jhu-clsp/ettin-encoder-68m": 68,
    "Alibaba-NLP/gte-multilingual-mlm-base": 305,
    "Alibaba-NLP/gte-large-en-v1.5": 434,
    "nomic-ai/nomic-bert-2048": 137,
    "ibm-granite/granite-embedding-30m-english": 30.3,
    "ibm-granite/granite-embedding-small-english-r2": 47.7,
    "mistralai/Mistral-7B-v0.1": 7242 - 131,
    "meta-llama/Llama-3.2-1B": 1236,
    "meta-llama/Llama-3.2-3B": 3213,
    "meta-llama/Llama-3.1-8B": 8030 - 525,
    "Qwen/Qwen2-0.5B": 494.03,
    "Qwen/Qwen2.5-1.5B": 1544,
    "Qwen/Qwen2.5-7B-Instruct": 7616 - 545,
    "Qwen/Qwen3-0.6B-Base": 596,
    "Qwen/Qwen3-1.7B-Base": 1721,
    "Qwen/Qwen3-4B-Base": 4022,
    "Qwen/Qwen3-8B-Base": 8191 - 622,
    "google/gemma-3-270m": 268,
    "google/embeddinggemma-300m": 308 - 4.7,  # less the two linear layers after the pooling
    "bigscience/bloom-560m": 559,
    "bigscience/bloom-1b1": 1065,
    "bigscience/bloom-3b": 3003,
    "bigscience/bloom-7b1": 7069,
    "EleutherAI/pythia-14m": 14.07 - 6.44,
    "EleutherAI/pythia-160m": 162.3 - 38.6,
    "EleutherAI/pythia-2.8b": 2775 - 129,
    "allenai/OLMoE-1B-7B-0924": 6919 - 103,
    "Qwen/Qwen1.5-MoE-A2.7B": 14316 - 311,
    "openai-community/gpt2": 124.4,
}


@pytest.mark.parametrize("name", BY_SHAPE.values())
def test_a_model_builds_without_a_hub_and_without_storage(name: str) -> None:
    model = known(name)
    with stand_in(model) as folder, torch.device("meta"):
        backbone = TransformerBackbone(name=folder, weights="random")
        tokenizer = backbone.tokenizer()
    count = sum(weight.numel() for weight in backbone.parameters())
    assert all(weight.is_meta for weight in backbone.parameters())
    assert {key: getattr(tokenizer, key) for key in model.tokens} == model.tokens
    if name in PUBLISHED:
        assert count / 1e6 == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - set(BY_SHAPE.values())))
def test_a_published_number_is_of_a_model_that_is_built(name: str) -> None:
    """By another model of the same shape."""
    assert shape(known(name)) in BY_SHAPE


def test_a_model_without_a_configuration_is_a_teacher_of_a_known_dimension() -> None:
    bare = [name for name in all_pinned() if not known(name).config]
    assert bare
    assert all(known(name).embedding_dim for name in bare)


def test_a_name_that_does_not_ship_is_none() -> None:
    assert pinned("nobody/nothing") is None
    assert pinned("../models/google-bert/bert-base-uncased") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}'])
def test_a_file_that_is_not_what_it_must_be_is_named(text, tmp_path, monkeypatch) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"owner/model.json: expected an object with config, tokens, longest and"):
        pinned("owner/model")
