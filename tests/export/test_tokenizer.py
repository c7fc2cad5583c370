"""The exported tokenizer makes, by itself, the tokens that the encoder read."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from embedtrain.export.tokenizer import ends_with, save_tokenizer

TEXTS = ["a", "def f(x): return x", " leading", "ünïcödé 東京", "long " * 50]


def byte_level(post_processor=None, **special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the quick brown fox", "long long return"], trainer)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)


BEGIN = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
POST_PROCESSORS = {
    "none": None,
    "byte-level": processors.ByteLevel(trim_offsets=False),
    "begin": BEGIN,
    "byte-level then begin": processors.Sequence([processors.ByteLevel(trim_offsets=True), BEGIN]),
}


@pytest.mark.parametrize("kind", POST_PROCESSORS)
def test_eos_is_appended_and_survives_truncation(kind, tmp_path):
    tokenizer = byte_level(POST_PROCESSORS[kind])
    notes = save_tokenizer(tokenizer, tmp_path, append=1, max_seq_length=16)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = reloaded(text, truncation=True)["input_ids"]
        plain = tokenizer(text)["input_ids"]
        assert ids == plain[:15] + [tokenizer.eos_token_id]
    assert any("</s>" in note and "appends" in note for note in notes)
    assert not ends_with(tokenizer, 1), "the tokenizer of the run itself must not change"


def test_offsets_still_treat_blanks_as_before(tmp_path):
    for trim in (True, False):
        tokenizer = byte_level(processors.ByteLevel(trim_offsets=trim))
        save_tokenizer(tokenizer, tmp_path, append=1, max_seq_length=64)
        reloaded = AutoTokenizer.from_pretrained(tmp_path)
        offsets = [t("the fox", return_offsets_mapping=True)["offset_mapping"] for t in (tokenizer, reloaded)]
        assert offsets[0] == offsets[1][:-1]


def test_classes_that_rebuild_their_post_processor_do_not_undo_eos(tmp_path):
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=[("▁", "a")], add_bos_token=True, add_eos_token=False)
    assert tokenizer("a b")["input_ids"][0] == 1
    save_tokenizer(tokenizer, tmp_path, append=2, max_seq_length=8)
    ids = AutoTokenizer.from_pretrained(tmp_path)("a b")["input_ids"]
    assert ids == [*tokenizer("a b")["input_ids"], 2]


def test_the_class_name_is_one_that_transformers_4_knows(tmp_path):
    save_tokenizer(byte_level(), tmp_path, append=None, max_seq_length=8)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 8


def test_truncation_left_behind_by_a_call_is_not_exported(tmp_path):
    tokenizer = byte_level(pad_token="<s>")
    tokenizer(["some long text here", "x"], truncation=True, max_length=3, padding=True)
    save_tokenizer(tokenizer, tmp_path, append=None, max_seq_length=64)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    assert state["truncation"] is None
    assert state["padding"] is None


def test_a_tokenizer_without_padding_gets_one_and_says_so(tmp_path):
    notes = save_tokenizer(byte_level(), tmp_path, append=None, max_seq_length=64)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "</s>"
    assert any("padding" in note for note in notes)
    assert save_tokenizer(byte_level(pad_token="<s>"), tmp_path, append=None, max_seq_length=64) == []
