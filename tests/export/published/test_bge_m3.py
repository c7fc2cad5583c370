"""BGE-M3: the dense folder of sentence-transformers, and two pickles beside it, read as views."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import AutoModel

from embedtrain.errors import CheckpointError
from embedtrain.export import export, load_encoder
from tests.export.published.folders import edit_json, random_tensors
from tests.export.published.reference import states
from tests.helpers.models import tiny_model_dir

TEXTS = ["a cat saw a cat", "The quick brown fox", "Straße 東京"]
HIDDEN = 32


@pytest.fixture
def published(tmp_path):
    """(folder, sparse {weight [1, H], bias [1]}, tokens {weight [H, H], bias [H]})."""
    source = tiny_model_dir("xlm-roberta", tmp_path)
    parts = [st.Transformer(source, max_seq_length=32), st.Pooling(HIDDEN, pooling_mode="cls"), st.Normalize()]
    folder = tmp_path / "model"
    SentenceTransformer(modules=parts, device="cpu").save(str(folder), create_model_card=False)
    sparse = random_tensors({"weight": (1, HIDDEN), "bias": (1,)}, seed=1)
    tokens = random_tensors({"weight": (HIDDEN, HIDDEN), "bias": (HIDDEN,)}, seed=2)
    half = {name: tensor.half() for name, tensor in sparse.items()}  # as published
    torch.save(half, folder / "sparse_linear.pt")
    torch.save(tokens, folder / "colbert_linear.pt")
    return folder, {name: tensor.float() for name, tensor in half.items()}, tokens


def test_three_embeddings_of_a_text_by_the_published_formulas(published):
    folder, sparse, tokens = published
    encoder = load_encoder(folder)
    body = AutoModel.from_pretrained(folder).eval()
    found = encoder.encode_embeddings(TEXTS, views=True)
    assert set(found.views) == {"sparse", "multi_vector"}
    offsets = found.view("multi_vector").offsets
    for n, text in enumerate(TEXTS):
        ids = encoder.tokenizer.hf(text)["input_ids"]
        hidden = states(body, ids)
        torch.testing.assert_close(found.values[n], F.normalize(hidden[0], dim=0), rtol=1e-4, atol=1e-5)
        expected = torch.zeros(len(encoder.tokenizer.hf))
        for i, state in zip(ids, hidden, strict=True):
            if i not in encoder.tokenizer.hf.all_special_ids:
                expected[i] = max(expected[i], torch.relu(sparse["weight"][0] @ state + sparse["bias"][0]))
        torch.testing.assert_close(found.view("sparse").values[n], expected, rtol=1e-4, atol=1e-5)
        vectors = F.normalize(hidden[1:] @ tokens["weight"].T + tokens["bias"], dim=1)
        ours = found.view("multi_vector").values[offsets[n] : offsets[n + 1]]
        torch.testing.assert_close(ours, vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("in_process")
def test_all_three_can_be_written_and_read_again(published, tmp_path):
    encoder = load_encoder(published[0])
    export(encoder, tmp_path / "again", probes=TEXTS)
    first, second = (e.encode_embeddings(TEXTS, views=True) for e in (encoder, load_encoder(tmp_path / "again")))
    for one, other in zip(first.tensors(), second.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_at_its_real_size_every_shape_is_the_published_one(published):
    folder, *_ = published
    edit_json(
        folder / "config.json",
        hidden_size=1024,
        num_attention_heads=16,
        num_hidden_layers=24,
        intermediate_size=4096,
        vocab_size=250002,
        max_position_embeddings=8194,
    )
    torch.save({"weight": torch.zeros(1, 1024), "bias": torch.zeros(1)}, folder / "sparse_linear.pt")
    torch.save({"weight": torch.zeros(1024, 1024), "bias": torch.zeros(1024)}, folder / "colbert_linear.pt")
    with torch.device("meta"):
        encoder = load_encoder(folder, backbone={"weights": "random"})
    assert tuple(encoder.views["sparse"].linear.weight.shape) == (1, 1024)
    assert tuple(encoder.views["multi_vector"].linear.weight.shape) == (1024, 1024)
    assert round(encoder.num_parameters() / 1e6) == 568  # "560M" without pooler and position rounding


class Evil:
    """What a pickle does when it is read without care."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


def evil(folder: Path) -> None:
    torch.save({"weight": Evil()}, folder / "sparse_linear.pt")


BROKEN = {
    r"sparse_linear\.pt: not the published keys\. Missing: bias\.": lambda folder: torch.save(
        {"weight": torch.ones(1, HIDDEN)}, folder / "sparse_linear.pt"
    ),
    r"Unexpected: linear\.weight": lambda folder: torch.save(
        {"weight": torch.ones(1, HIDDEN), "bias": torch.ones(1), "linear.weight": torch.ones(1)},
        folder / "sparse_linear.pt",
    ),
    r"Shapes: linear\.weight \[1, 5\], expected \[1, 32\]": lambda folder: torch.save(
        {"weight": torch.ones(1, 5), "bias": torch.ones(1)}, folder / "sparse_linear.pt"
    ),
    "holds more than tensors": evil,
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_file_that_is_not_as_published_is_named_and_never_run(message, published, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder, *_ = published
    BROKEN[message](folder)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)
    assert not (tmp_path / "was_run").exists()


def test_weights_that_were_published_as_a_pickle_are_read(published):
    """bge-m3 itself has pytorch_model.bin; transformers reads tensors of it, and no more."""
    folder, *_ = published
    expected = load_encoder(folder).encode(TEXTS)
    torch.save(AutoModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    torch.testing.assert_close(load_encoder(folder).encode(TEXTS), expected)
