"""Tokens that a model was not published with: how their rows start, that they train, and that exports have them in the table."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from embedtrain.backbones.lm_head import LanguageModelHead
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens
from tests.helpers.models import tiny_model_dir

NEW = {"[BOQ]": None, "[EOQ]": "the"}


def backbone(folder, **options):
    return TransformerBackbone(name=folder, new_tokens=NEW, **options).eval()


def plain(folder):
    """The model and its tokenizer grown by transformers itself, row by row."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    words = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"additional_special_tokens": list(NEW)})
    boq, eoq = tokenizer.convert_tokens_to_ids(list(NEW))
    size = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(max(size, eoq + 1), mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[boq] = table[[i for i in words.values() if i < size]].mean(0)
        table[eoq] = table[words["the"]]
    return model.eval(), tokenizer


def ragged(tokenizer, *texts):
    return RaggedTokens.from_lists([tokenizer(text)["input_ids"] for text in texts])


TEXTS = ("[BOQ]where is the cat[EOQ]", "the end[EOQ][EOQ]", "no mark")


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "qwen3", "gemma3_text"])  # the last scales its rows
def test_states_and_gradients_are_those_of_a_model_with_a_larger_table(architecture, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    reference, their_tokenizer = plain(folder)
    ours = backbone(folder)
    tokenizer = ours.tokenizer()
    tokens = ragged(tokenizer, *TEXTS)
    states = ours(tokens).split(tokens.lengths.tolist())
    ours_squared, theirs_squared = [], []
    for text, found in zip(TEXTS, states, strict=True):
        ids = their_tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        assert ids["input_ids"][0].tolist() == tokenizer(text)["input_ids"]
        expected = reference(**ids).last_hidden_state[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        weights = torch.linspace(-1, 1, expected.numel()).view_as(expected)
        ours_squared.append((weights * found).sum())
        theirs_squared.append((weights * expected).sum())
    sum(ours_squared).backward()
    sum(theirs_squared).backward()
    whole = reference.get_input_embeddings().weight.grad
    table = ours.hf_model.get_input_embeddings()
    new = tokenizer.convert_tokens_to_ids(list(NEW))
    torch.testing.assert_close(table.new_rows.grad, whole[new], rtol=1e-3, atol=1e-4)
    assert not table.weight.grad[new].any()  # in whose place the new rows stand
    others = torch.ones(len(whole), dtype=torch.bool)
    others[new] = False
    torch.testing.assert_close(table.weight.grad[others], whole[others], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_saved_model_has_the_rows_in_its_table_and_is_read_without_a_word(lora, tmp_path):
    ours = backbone(tiny_model_dir("gemma3_text", tmp_path), lora=lora)
    before = ours.state_dict()
    with torch.no_grad():
        ours.hf_model.get_input_embeddings().new_rows.normal_()
    ours.merged_model().save_pretrained(tmp_path / "saved")
    ours.tokenizer().save_pretrained(tmp_path / "saved")
    assert ours.state_dict().keys() == before.keys()  # the one that trains is as it was
    again = TransformerBackbone(name=str(tmp_path / "saved")).eval()
    assert not [name for name in again.state_dict() if "new_rows" in name]
    tokens = ragged(again.tokenizer(), *TEXTS)
    assert torch.equal(tokens.ids, ragged(ours.tokenizer(), *TEXTS).ids)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens), ours(tokens))
        # Asked for once more, the tokens are there already, and go on from their rows.
        once_more = backbone(str(tmp_path / "saved"), lora=lora)
        torch.testing.assert_close(once_more(tokens), ours(tokens))


def test_under_lora_the_new_rows_train_and_the_table_does_not(tmp_path):
    ours = backbone(tiny_model_dir("qwen3", tmp_path), lora={"r": 2}, dtype="bfloat16")
    table = ours.hf_model.get_input_embeddings()
    trained = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    assert [name for name in trained if "lora_" not in name] == ["hf_model.embed_tokens.new_rows"]
    assert table.new_rows.dtype == torch.float32
    before = table.weight.clone(), table.new_rows.detach().clone()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    ours(ragged(ours.tokenizer(), *TEXTS)).float().square().sum().backward()
    optimizer.step()
    assert torch.equal(table.weight, before[0])
    assert (table.new_rows != before[1]).all()


def test_a_table_that_has_room_keeps_its_size(tmp_path):
    folder = tiny_model_dir("bert", tmp_path, vocab_size=40000)
    ours = backbone(folder)
    assert ours.config.vocab_size == 40000
    assert ours.hf_model.get_input_embeddings().num_embeddings == 40000


def test_no_weights_are_needed_to_count_them(tmp_path):
    folder = tiny_model_dir("bert", tmp_path)
    with torch.device("meta"):
        ours = TransformerBackbone(name=folder, weights="random", new_tokens={"[BOQ]": "a word that is none"})
    assert ours.hf_model.get_input_embeddings().new_rows.shape == (1, 32)


def test_what_cannot_be_is_refused(tmp_path):
    folder = tiny_model_dir("bert", tmp_path)
    for said in (["[BOQ]"], {"[BOQ]": 3}, {"": None}, "[BOQ]"):
        with pytest.raises(ConfigError, match="new_tokens: expected tokens and what each starts as"):
            TransformerBackbone(name=folder, new_tokens=said)
    with pytest.raises(ConfigError, match=r"new_tokens.\[BOQ\]='nosuchword'.*no such token to start with"):
        TransformerBackbone(name=folder, new_tokens={"[BOQ]": "nosuchword"})
    with pytest.raises(ConfigError, match="adapters on the input embeddings"):
        backbone(folder, lora={"target_modules": ["word_embeddings", "query"]})
    with pytest.raises(ConfigError, match="are not rounded"):
        backbone(folder, quantise={"embeddings": True})
    with pytest.raises(ConfigError, match="no logits for new tokens"):
        LanguageModelHead(backbone(folder))
