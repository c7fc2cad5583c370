"""What a prompt has behind the text, out as a folder and back: by the tokenizer alone, by embedtrain alone, or refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from embedtrain.backbones.loading import load_tokenizer
from embedtrain.data.prompts import Prompts
from embedtrain.errors import ConfigError
from embedtrain.export import verify
from embedtrain.export.folder import read_model_folder
from embedtrain.export.load import load_encoder
from embedtrain.export.modules.reload import with_embedtrain
from embedtrain.export.sentence_transformers import check_exportable, export
from embedtrain.mining.identity import identity
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.pooling.weighted_mean import WeightedMeanPooling
from tests.export.test_load import TEXTS
from tests.export.test_sentence_transformers import PROBES, tiny_encoder

SAME = Prompts(query='This: "{text}" in one word: "', document='"{text}" in one word: "')
HUB = {"revision": None, "trust_remote_code": False}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("architecture", "append_eos"), [("bert", False), ("qwen3", False), ("qwen3", True)])
def test_the_exported_tokenizer_adds_the_end_by_itself_and_we_take_it_out_again(architecture, append_eos, tmp_path):
    encoder = tiny_encoder(tmp_path, architecture, EosPooling(), prompts=SAME, append_eos=append_eos)
    report = export(encoder, tmp_path / "model", probes=PROBES)
    assert any("in one word" in note and "behind every text" in note for note in report.notes)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ("a cat", "long words " * 300):
        expected, _ = encoder.tokenizer.encode([text], role="query")
        assert theirs('This: "' + text, truncation=True)["input_ids"] == expected.ids.tolist()
    ours = load_tokenizer(str(tmp_path / "model"), HUB)
    before = encoder.tokenizer.hf
    if append_eos:  # that stays, and is not doubled
        assert ours("a cat")["input_ids"] == [*before("a cat")["input_ids"], before.eos_token_id]
    else:
        assert ours("a cat")["input_ids"] == before("a cat")["input_ids"]


@pytest.mark.usefixtures("in_process")
def test_a_folder_that_was_read_is_the_encoder_and_can_be_written_again(tmp_path):
    encoder = tiny_encoder(tmp_path, "qwen3", EosPooling(), prompts=SAME)
    export(encoder, tmp_path / "first", probes=PROBES)
    loaded = load_encoder(tmp_path / "first")
    assert identity(loaded) == identity(encoder)
    assert read_model_folder(tmp_path / "first").prompts == SAME.named()
    assert export(loaded, tmp_path / "second", probes=PROBES).worst_cosine > 0.99999


@pytest.fixture
def read_here(monkeypatch):
    """The same reload without a new interpreter."""

    def embed(folder, task, library):
        assert library == "embedtrain"
        return with_embedtrain(str(folder), task["texts"], task["prompts"])

    monkeypatch.setattr(verify, "_embed_in_fresh_process", embed)


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize("pooling", [EosPooling, WeightedMeanPooling])
@pytest.mark.parametrize("pool_prompt", [True, False])
def test_other_ends_by_role_are_read_by_embedtrain_alone(pooling, pool_prompt, tmp_path):
    prompts = Prompts(query="q: {text} asked", document="d: {text} told", pool_prompt=pool_prompt)
    encoder = tiny_encoder(tmp_path, "qwen3", pooling(), prompts=prompts, projection_dim=8)
    report = export(encoder, tmp_path / "model", probes=PROBES)
    assert "embedtrain's own reader" in report.verified_with
    assert any("no place for prompts that end behind the text" in note for note in report.notes)
    loaded = load_encoder(tmp_path / "model")
    for role in ("query", "document"):
        torch.testing.assert_close(loaded.encode(TEXTS, role=role), encoder.encode(TEXTS, role=role))
    assert type(loaded.pooling) is pooling


def test_an_instruction_behind_the_text_comes_back_as_its_place(tmp_path):
    encoder = tiny_encoder(tmp_path, prompts=Prompts(query="{text}\nTask: {instruction}"))
    export(encoder, tmp_path / "model", probes=PROBES)
    loaded = load_encoder(tmp_path / "model")
    options = {"role": "query", "instructions": ["find"] * len(TEXTS)}
    torch.testing.assert_close(loaded.encode(TEXTS, **options), encoder.encode(TEXTS, **options))


def test_what_no_folder_can_say_is_refused(tmp_path):
    same = Prompts(query="{text} now", document="{text} now", pool_prompt=False)
    with pytest.raises(ConfigError, match=r"behind \{text\} cannot be exported with prompts.pool_prompt=false"):
        check_exportable(tiny_encoder(tmp_path, prompts=same))
    head = MultiVectorPooling(hidden_size=32, punctuation_ids=())
    with pytest.raises(ConfigError, match="the same behind queries and documents"):
        check_exportable(tiny_encoder(tmp_path, pooling=head, prompts=Prompts(query="{text} now")))
