"""Models that need no mapping, in the form in which they were published, and SPLADE in that of sentence-transformers 5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer, SparseEncoder
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from embedtrain.errors import CheckpointError
from embedtrain.export import load_encoder
from embedtrain.export.published import LAYOUTS
from tests.export.published.folders import copy_tokenizer, edit_json, tiny_body, write_json, write_weights
from tests.export.published.reference import states

TEXTS = ["a cat", "The quick brown fox", "Straße 東京", "."]


def st_folder(tmp_path: Path, architecture: str, mode: str, *, normalize: bool, prompts=None, **config) -> Path:
    """As the versions 2 to 5 of sentence-transformers wrote it."""
    source, _ = tiny_body(architecture, tmp_path, **config)
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    write_json(source / "modules.json", modules)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
    write_json(source / "1_Pooling" / "config.json", pooling)
    write_json(source / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    if prompts:
        write_json(source / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return source


PLAIN = {
    "e5": {"architecture": "bert", "mode": "mean_tokens", "normalize": True},
    "bge v1.5": {"architecture": "bert", "mode": "cls_token", "normalize": True},
    "gte": {"architecture": "bert", "mode": "mean_tokens", "normalize": False},
    "multilingual e5": {"architecture": "xlm-roberta", "mode": "mean_tokens", "normalize": True},
    "Starbucks": {"architecture": "bert", "mode": "cls_token", "normalize": False},
    "modernbert-embed": {"architecture": "modernbert", "mode": "mean_tokens", "normalize": True},
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_needs_no_mapping_is_recognised_by_no_reader_and_reads_the_same(name, tmp_path):
    folder = st_folder(tmp_path, **PLAIN[name])
    assert [layout for layout, read in LAYOUTS.items() if read(folder) is not None] == []
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(load_encoder(folder).encode(TEXTS), expected, rtol=1e-4, atol=1e-5)


def test_starbucks_is_cut_after_a_layer_and_a_dimension(tmp_path):
    """(layer 1, 8 dimensions): CLS of an inner layer, its first numbers."""
    folder = st_folder(tmp_path, **PLAIN["Starbucks"])
    encoder = load_encoder(folder)
    encoder.read_layers([1])
    found = encoder.encode_embeddings(TEXTS, views=True).view("layer_1").truncate(8).values
    body = AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([encoder.tokenizer.hf(text)["input_ids"]])
        with torch.no_grad():
            inner = body(input_ids=ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(vector, inner[0, 0, :8], rtol=1e-4, atol=1e-5)


def test_qwen3_embedding_is_its_last_token(tmp_path):
    """Causal, EOS behind every text by the tokenizer, last token, length 1; only queries have a prompt."""
    prompts = {
        "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
        "document": "",
    }
    folder = st_folder(tmp_path, "qwen3", "lasttoken", normalize=True, prompts=prompts)
    edit_json(folder / "tokenizer_config.json", add_eos_token=True)
    encoder = load_encoder(folder)
    assert encoder.backbone.direction == "causal"
    body, eos = AutoModel.from_pretrained(folder).eval(), encoder.tokenizer.hf.eos_token_id
    for role in ("query", "document"):
        for text, vector in zip(TEXTS, encoder.encode(TEXTS, role=role), strict=True):
            ids = [*encoder.tokenizer.hf(prompts[role] + text)["input_ids"], eos]
            torch.testing.assert_close(vector, F.normalize(states(body, ids)[-1], dim=0), rtol=1e-4, atol=1e-5)


def splade(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """naver/splade-*: a masked language model and SpladePooling, as version 5 of sentence-transformers names them."""
    source, _ = tiny_body("bert", tmp_path)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source)).eval()
    folder = tmp_path / "splade"
    write_json(
        folder / "config.json",
        json.loads((source / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]},
    )
    copy_tokenizer(source, folder)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("cls.predictions.decoder")}
    write_weights(weights, folder)
    module = "sentence_transformers.sparse_encoder.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{module}MLMTransformer"},
        {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": f"{module}SpladePooling"},
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None}
    write_json(folder / "1_SpladePooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    settings = {"model_type": "SparseEncoder", "prompts": {}, "similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", settings)
    return folder, model


def test_splade_is_the_published_formula_and_what_sentence_transformers_makes_of_it(tmp_path):
    folder, model = splade(tmp_path)
    encoder = load_encoder(folder)
    found = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([encoder.tokenizer.hf(text)["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        expected = torch.log1p(torch.relu(logits)).amax(0)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-4)
    theirs = SparseEncoder(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True).to_dense()
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)


def test_a_model_that_does_not_say_how_it_pools_is_refused(tmp_path):
    source, _ = tiny_body("bert", tmp_path)
    with pytest.raises(CheckpointError, match=r"modules\.json is missing.*does not say how its tokens become a vector"):
        load_encoder(source)
