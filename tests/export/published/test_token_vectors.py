"""ColBERT's own checkpoints and those of PyLate, against sentence-transformers, which reads both."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import MultiVectorEncoder

from embedtrain.errors import CheckpointError
from embedtrain.export import load_encoder
from tests.export.published.folders import (
    copy_tokenizer,
    edit_json,
    random_tensors,
    tiny_body,
    write_json,
    write_weights,
)
from tests.export.published.reference import states

TEXTS = ["a cat, a dog.", "The quick (brown) fox!", "long words " * 30, "Straße 東京", "."]
QUERY_LENGTH, DOCUMENT_LENGTH, DIM = 16, 24, 8
METADATA = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": QUERY_LENGTH,
    "doc_maxlen": DOCUMENT_LENGTH,
    "dim": DIM,
    "mask_punctuation": True,
    "attend_to_mask_tokens": True,
    "similarity": "cosine",
    "checkpoint": "/somewhere/else",
}


def stanford(tmp_path: Path, **metadata) -> tuple[Path, object, torch.Tensor]:
    source, body = tiny_body("bert", tmp_path)
    folder = tmp_path / "model"
    config = json.loads((source / "config.json").read_text())
    write_json(folder / "config.json", config | {"architectures": ["HF_ColBERT"]})
    write_json(folder / "artifact.metadata", METADATA | metadata)
    copy_tokenizer(source, folder)
    linear = random_tensors({"linear.weight": (DIM, 32)})
    weights = {f"bert.{name}": tensor for name, tensor in body.state_dict().items()}
    write_weights(weights | linear, folder)
    return folder, body, linear["linear.weight"]


def pylate(tmp_path: Path, denses=((32, DIM, False),), **settings) -> Path:
    """`denses`: (in, out, whether a parallel layer runs beside) of each."""
    source, body = tiny_body("modernbert", tmp_path)
    folder = tmp_path / "model"
    write_json(folder / "config.json", json.loads((source / "config.json").read_text()))
    copy_tokenizer(source, folder)
    write_weights(body.state_dict(), folder)
    steps = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (wide, out, beside) in enumerate(denses, 1):
        path = f"{number}_Dense"
        steps.append({"idx": number, "name": str(number), "path": path, "type": "pylate.models.Dense.Dense"})
        identity = "torch.nn.modules.linear.Identity"
        config = {"in_features": wide, "out_features": out, "bias": False, "activation_function": identity}
        write_json(folder / path / "config.json", config | {"use_residual": beside})
        shapes = {"linear.weight": (out, wide)}
        if beside and wide != out:
            shapes["residual.weight"] = (out, wide)
        write_weights(random_tensors(shapes, seed=number), folder / path)
    write_json(folder / "modules.json", steps)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": DOCUMENT_LENGTH - 1, "do_lower_case": False})
    said = {
        "model_type": "ColBERT",
        "query_prefix": "[unused0] ",
        "document_prefix": "[unused1] ",
        "query_length": QUERY_LENGTH,
        "document_length": DOCUMENT_LENGTH,
        "do_query_expansion": True,
        "attend_to_expansion_tokens": True,
        "skiplist_words": list(string.punctuation),
        "similarity_fn_name": "MaxSim",
        "prompts": {},
    }
    write_json(folder / "config_sentence_transformers.json", said | settings)
    return folder


def assert_same(folder: Path) -> None:
    encoder, reference = load_encoder(folder), MultiVectorEncoder(str(folder), device="cpu")
    for role, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
        found = encoder.encode_embeddings(TEXTS, role=role)
        for number, expected in enumerate(encode(TEXTS)):
            ours = found.values[found.offsets[number] : found.offsets[number + 1]]
            torch.testing.assert_close(ours, torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


def test_colbert_is_what_sentence_transformers_makes_of_it(tmp_path):
    folder, *_ = stanford(tmp_path)
    assert_same(folder)


def test_colbert_by_the_formula(tmp_path):
    """[CLS] [unused0] words [SEP] and masks up to query_maxlen; [CLS] [unused1] words [SEP], without its punctuation."""
    folder, body, linear = stanford(tmp_path)
    encoder = load_encoder(folder)
    hf = encoder.tokenizer.hf
    words = hf("a cat, a dog.", add_special_tokens=False)["input_ids"]
    cls, sep, mask = hf.cls_token_id, hf.sep_token_id, hf.mask_token_id
    first, second = hf.convert_tokens_to_ids(["[unused0]", "[unused1]"])
    query = [cls, first, *words, sep]
    query += [mask] * (QUERY_LENGTH - len(query))
    document = [cls, second, *words, sep]
    kept = [n for n, i in enumerate(document) if hf.convert_ids_to_tokens(i) not in string.punctuation]
    expected_query = F.normalize(states(body, query) @ linear.T, dim=1)
    expected_document = F.normalize(states(body, document) @ linear.T, dim=1)[kept]
    found_query = encoder.encode_embeddings(["a cat, a dog."], role="query").values
    found_document = encoder.encode_embeddings(["a cat, a dog."], role="document").values
    torch.testing.assert_close(found_query, expected_query, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_document, expected_document, rtol=1e-4, atol=1e-5)


PYLATE = {
    "one Dense": {},
    "queries as they are": {"do_query_expansion": False, "attend_to_expansion_tokens": False},
    "no punctuation list": {"skiplist_words": [], "document_length": 12},
    "three Dense, two with a layer beside": {"denses": ((32, 48, True), (48, 32, True), (32, DIM, False))},
    "Dense beside the states themselves": {"denses": ((32, 32, True), (32, DIM, False))},
}


@pytest.mark.parametrize("name", PYLATE)
def test_pylate_is_what_sentence_transformers_makes_of_it(name, tmp_path):
    assert_same(pylate(tmp_path, **PYLATE[name]))


def test_pylate_at_the_sizes_of_gte_modern_colbert(tmp_path):
    folder = pylate(tmp_path)
    edit_json(folder / "config.json", hidden_size=768, num_attention_heads=12)
    edit_json(folder / "1_Dense" / "config.json", in_features=768, out_features=128)
    with torch.device("meta"):
        encoder = load_encoder(folder, backbone={"weights": "random"})
    assert tuple(encoder.pooling.linear.weight.shape) == (128, 768)
    assert encoder.pooling.linear.bias is None


UNSEEN = {
    "ColBERT": lambda tmp_path, said: stanford(tmp_path, attend_to_mask_tokens=said)[0],
    "PyLate": lambda tmp_path, said: pylate(tmp_path, attend_to_expansion_tokens=said),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_masks_that_no_token_sees_have_vectors_and_are_in_nobody_elses(name, tmp_path):
    folder = UNSEEN[name](tmp_path, False)
    assert_same(folder)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    seen = load_encoder(UNSEEN[name](tmp_path, True))
    assert seen.tokenizer.attend_to_masks
    texts = ["a cat"]
    with_masks = seen.encode_embeddings(texts, role="query").values
    seen.tokenizer.attend_to_masks = False
    assert (seen.encode_embeddings(texts, role="query").values - with_masks).abs().max() > 1e-3


def test_other_skip_lists_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"skiplist_words \['the'\] cannot be read"):
        load_encoder(pylate(tmp_path, skiplist_words=["the"]))


def test_a_linear_layer_of_another_size_is_named(tmp_path):
    folder, *_ = stanford(tmp_path, dim=9)
    with pytest.raises(CheckpointError, match=r"Shapes: linear\.weight \[8, 32\], expected \[9, 32\]"):
        load_encoder(folder)


def test_a_body_that_lacks_a_weight_is_no_colbert(tmp_path):
    folder, body, linear = stanford(tmp_path)
    weights = {f"bert.{name}": tensor for name, tensor in body.state_dict().items() if "layer.1.output" not in name}
    write_weights(weights | {"linear.weight": linear}, folder)
    with pytest.raises(CheckpointError, match=r"not the weights of ColBERT\. Missing: .*layer\.1\.output"):
        load_encoder(folder)


def test_a_dense_that_is_not_as_its_config_says_is_named(tmp_path):
    folder = pylate(tmp_path)
    write_weights({"linear.weight": torch.ones(DIM, 31)}, folder / "1_Dense")
    with pytest.raises(CheckpointError, match=r"expected \{'linear\.weight': \[8, 32\]\}.* got .*\[8, 31\]"):
        load_encoder(folder)
