"""Folders of sentence-transformers, ours and others', read back as encoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st

from embedtrain.errors import CheckpointError
from embedtrain.export.folder import read_model_folder
from embedtrain.export.load import load_encoder
from embedtrain.export.pooling import MODES
from embedtrain.export.sentence_transformers import export
from tests.export.test_sentence_transformers import CASES, PROBES, make_adapters_matter, tiny_encoder
from tests.helpers.models import minilm_dir, tiny_model_dir

TEXTS = ["a cat", "The quick brown fox", "long words " * 300, "Straße 東京", "."]


def assert_same(encoder, reference, texts=TEXTS):
    for role, encode in (("query", reference.encode_query), ("document", reference.encode_document)):
        torch.testing.assert_close(
            encoder.encode(texts, role=role), torch.from_numpy(encode(texts)), rtol=1e-5, atol=1e-5, check_dtype=False
        )


def test_minilm_from_its_package():
    encoder = load_encoder(minilm_dir())
    assert encoder.tokenizer.max_length == {"query": 256, "document": 256}
    assert_same(encoder, SentenceTransformer(minilm_dir(), device="cpu"))


ROUND_TRIPS = (
    "cls",
    "max",
    "weighted mean, prompts not pooled",
    "first and last layer",
    "latent attention, prompts not pooled",
    "causal decoder with eos",
    "bidirectional decoder",
    "lora",
    "projection, any length",
    "prompts",
    "text behind",
    "in one word",
)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_was_exported_comes_back(name, tmp_path):
    encoder = tiny_encoder(tmp_path, **CASES[name])
    make_adapters_matter(encoder)
    export(encoder, tmp_path / "model", probes=PROBES)
    loaded = load_encoder(tmp_path / "model")
    for role in ("query", "document"):
        torch.testing.assert_close(
            loaded.encode(TEXTS, role=role), encoder.encode(TEXTS, role=role), rtol=1e-4, atol=1e-5
        )
    assert type(loaded.pooling) is type(encoder.pooling)
    assert loaded.normalize == encoder.normalize
    assert loaded.tokenizer.max_length == encoder.tokenizer.max_length
    assert loaded.tokenizer.append_eos == encoder.tokenizer.append_eos
    assert loaded.tokenizer.prompts.templates == encoder.tokenizer.prompts.templates


@pytest.mark.usefixtures("in_process")
def test_what_was_read_can_be_written_again(tmp_path):
    encoder = tiny_encoder(tmp_path, **CASES["latent attention, prompts not pooled"])
    export(encoder, tmp_path / "first", probes=PROBES)
    report = export(load_encoder(tmp_path / "first"), tmp_path / "second", probes=PROBES)
    assert report.worst_cosine > 0.99999


# cls with the prompt left out means another token there than here; it is refused, see below.
THEIRS = [(mode, pooled) for mode in MODES for pooled in (True, False) if (mode, pooled) != ("cls", False)]


@pytest.mark.parametrize(("mode", "include_prompt"), THEIRS)
def test_folders_written_by_sentence_transformers_itself(mode, include_prompt, tmp_path):
    torch.manual_seed(0)
    transformer = st.Transformer(tiny_model_dir("bert", tmp_path), max_seq_length=20)
    pooling = st.Pooling(32, pooling_mode=mode, include_prompt=include_prompt)
    dense = st.Dense(32, 12, bias=False, activation_function=torch.nn.Identity())
    parts = [transformer, pooling, dense, st.Normalize()]
    model = SentenceTransformer(modules=parts, prompts={"query": "find: ", "document": "text: "}, device="cpu")
    model.save(str(tmp_path / "theirs"), create_model_card=False)
    assert_same(load_encoder(tmp_path / "theirs"), model)


def test_further_arguments_reach_the_backbone(tmp_path):
    encoder = load_encoder(minilm_dir(), backbone={"lora": {"r": 2}})
    assert 0 < encoder.num_trainable() < encoder.num_parameters() / 50


def edit(path: Path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


REFUSED = {
    "modules.json is missing": lambda folder: (folder / "modules.json").unlink(),
    "cannot be read as JSON": lambda folder: (folder / "modules.json").write_text("{"),
    r"LSTM cannot be read after mean pooling": lambda folder: edit(
        folder / "modules.json",
        lambda steps: [*steps, {"idx": 3, "name": "3", "path": "3", "type": "sentence_transformers.models.LSTM"}],
    ),
    "expected a Pooling after the Transformer, got evil.Module": lambda folder: edit(
        folder / "modules.json", lambda steps: [steps[0], {"idx": 1, "name": "1", "path": "1", "type": "evil.Module"}]
    ),
    "expected a Transformer first, got nothing": lambda folder: edit(folder / "modules.json", lambda steps: []),
    "pooling cls . mean cannot be read": lambda folder: edit(
        folder / "1_Pooling" / "config.json", lambda config: config | {"pooling_mode_cls_token": True}
    ),
    "pooling mean_sqrt_len_tokens cannot be read": lambda folder: edit(
        folder / "1_Pooling" / "config.json", lambda config: {"pooling_mode": "mean_sqrt_len_tokens"}
    ),
    "cls with include_prompt false": lambda folder: edit(
        folder / "1_Pooling" / "config.json", lambda config: {"pooling_mode": "cls", "include_prompt": False}
    ),
    "a SparseEncoder of Pooling, Normalize .* cannot be read": lambda folder: edit(
        folder / "config_sentence_transformers.json", lambda config: config | {"model_type": "SparseEncoder"}
    ),
    "Pooling, .*Normalize behind the transformer of a MultiVectorEncoder": lambda folder: edit(
        folder / "config_sentence_transformers.json", lambda config: config | {"model_type": "MultiVectorEncoder"}
    ),
    "model_type is CrossEncoder; known are": lambda folder: edit(
        folder / "config_sentence_transformers.json", lambda config: config | {"model_type": "CrossEncoder"}
    ),
    "fill-mask": lambda folder: edit(
        folder / "sentence_bert_config.json", lambda config: config | {"transformer_task": "fill-mask"}
    ),
    "holds an adapter without its base model": lambda folder: (folder / "adapter_config.json").write_text("{}"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(message, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(minilm_dir(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    REFUSED[message](folder)
    with pytest.raises(CheckpointError, match=message):
        read_model_folder(folder)


def test_a_dense_with_an_activation_is_refused(tmp_path):
    model = SentenceTransformer(
        modules=[st.Transformer(tiny_model_dir("bert", tmp_path)), st.Pooling(32), st.Dense(32, 8)], device="cpu"
    )
    model.save(str(tmp_path / "theirs"), create_model_card=False)
    with pytest.raises(CheckpointError, match=r"a Dense with torch\.nn\.modules\.activation\.Tanh cannot be read"):
        load_encoder(tmp_path / "theirs")


def test_a_name_that_is_nowhere(tmp_path):
    with pytest.raises(CheckpointError, match=r"no folder here, and no model could be fetched"):
        load_encoder("nobody/nothing-at-all")


def test_prompts_that_nothing_reads_are_warned_of(tmp_path, caplog):
    shutil.copytree(minilm_dir(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    edit(
        tmp_path / "model" / "config_sentence_transformers.json",
        lambda config: config | {"prompts": {"query": "q: ", "passage": "p: "}},
    )
    model = read_model_folder(tmp_path / "model")
    assert model.prompts == {"query": "q: ", "passage": "p: "}
    assert "passage" in caplog.text
