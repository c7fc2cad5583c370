"""A smaller vocabulary: what is kept is cut and embedded as before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from data_pipelines import prune_vocabulary
from data_pipelines.prune_vocabulary import prune, pruned, used_tokens
from embedtrain.errors import CheckpointError, ConfigError
from tests.helpers.models import tiny_model_dir

DUTCH = [
    "de kat zit op de mat",
    "een hond loopt over de brug",
    "water is nat en ijs is koud",
    "zij las een boek over vogels",
]
OTHER = ["the weather is fine today", "reading letters from another country", "Küche über Straße", "никто не знает"] * 3
WORDS = sorted({word for text in DUTCH for word in text.split()})
KINDS = ("wordpiece", "unigram", "bpe")


def tokenizer_of(kind: str, folder: Path) -> PreTrainedTokenizerFast:
    if kind == "wordpiece":
        return AutoTokenizer.from_pretrained(tiny_model_dir("bert", folder))
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "unigram":
        plain = Tokenizer(Unigram())
        plain.pre_tokenizer = pre_tokenizers.Metaspace()
        plain.train_from_iterator(
            DUTCH + OTHER,
            UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False),
        )
    else:
        plain = Tokenizer(BPE())
        plain.pre_tokenizer = pre_tokenizers.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        plain.train_from_iterator(
            DUTCH * 3 + OTHER,
            BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
        )
    around = [(token, plain.token_to_id(token)) for token in ("<s>", "</s>")]
    plain.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    plain.add_special_tokens(["<mask>"])  # outside of the model's own vocabulary
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", mask_token="<mask>", **names)


def model_dir(kind: str, folder: Path) -> Path:
    """A random model that counts positions from the padding token, where the kind has one in front."""
    if kind == "wordpiece":
        return Path(tiny_model_dir("bert", folder))
    tokenizer = tokenizer_of(kind, folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = AutoConfig.for_model("xlm-roberta", vocab_size=len(tokenizer), initializer_range=0.2, **sizes, **ids)
    AutoModel.from_config(config).save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / kind)
    return folder / kind


def states(folder: Path, text: str) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]


@pytest.mark.parametrize("kind", KINDS)
def test_kept_tokens_give_equal_embeddings_in_a_smaller_model(kind: str, tmp_path: Path) -> None:
    folder = model_dir(kind, tmp_path)
    (folder / "modules.json").write_text("[]")
    before, after = prune(str(folder), DUTCH, tmp_path / "small")
    assert after < before
    rows = AutoModel.from_pretrained(tmp_path / "small").get_input_embeddings().num_embeddings
    assert rows == len(AutoTokenizer.from_pretrained(tmp_path / "small")) == after
    for text in (*DUTCH, "een boek is nat"):
        torch.testing.assert_close(states(tmp_path / "small", text), states(folder, text), atol=1e-6, rtol=0)
    assert (tmp_path / "small" / "modules.json").is_file()
    named = [AutoTokenizer.from_pretrained(place).special_tokens_map for place in (folder, tmp_path / "small")]
    assert named[0] == named[1]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Of each kind: the old tokenizer, the new one, the old number of each new token."""
    made = {}
    for kind in KINDS:
        old = tokenizer_of(kind, tmp_path_factory.mktemp(kind))
        used = used_tokens(old, DUTCH)  # and no padding from here on
        written, numbers = pruned(json.loads(old.backend_tokenizer.to_str()), used)
        made[kind] = old.backend_tokenizer, Tokenizer.from_str(json.dumps(written)), numbers
    return made


@pytest.mark.parametrize("kind", KINDS)
@given(words=st.lists(st.sampled_from([*WORDS, "ka", "vogel", "brugboek", "zzz", "Ж"]), max_size=8))
def test_a_text_of_kept_tokens_is_cut_as_before(kind: str, words: list[str], both: dict[str, tuple]) -> None:
    old, new, numbers = both[kind]
    text = " ".join(words)
    expected = old.encode(text).ids
    if set(expected) <= set(numbers):
        assert [numbers[number] for number in new.encode(text).ids] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_new_words_of_known_characters_can_be_spelled(kind: str, both: dict[str, tuple]) -> None:
    _, new, _ = both[kind]
    tokens = new.encode("brugkat").tokens
    assert not {"<unk>", "[UNK]"} & set(tokens)


def test_a_rare_token_goes_and_its_characters_stay(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("wordpiece", tmp_path)
    texts = ["water water water", "book"]
    names = {tokenizer.convert_ids_to_tokens(number) for number in used_tokens(tokenizer, texts, min_count=2)}
    assert {"water", "b", "##o", "[CLS]"} <= names
    assert "book" not in names


def test_a_folder_that_is_there_and_a_model_that_would_differ_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_dir("wordpiece", tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        prune(str(folder), DUTCH, folder)
    cut = prune_vocabulary._cut_rows
    monkeypatch.setattr(prune_vocabulary, "_cut_rows", lambda body, old: cut(body, [*old[1:], old[0]]))
    with pytest.raises(CheckpointError, match="the smaller model embeds 'de kat"):
        prune(str(folder), DUTCH, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_command_says_what_is_kept_and_keeps_the_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_dir("wordpiece", tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(DUTCH * 2))
    typed = ["prune", str(folder), "--texts", str(tmp_path / "texts.txt"), "--prompts", "passage: ", "--min-count", "2"]
    monkeypatch.setattr(sys, "argv", [*typed, "--out", str(tmp_path / "small")])
    prune_vocabulary.main()
    assert "of 30,522 tokens" in capsys.readouterr().out
    assert "passage" in AutoTokenizer.from_pretrained(tmp_path / "small").get_vocab()
    monkeypatch.setattr(sys, "argv", [*typed, "--out", str(tmp_path / "small")])
    with pytest.raises(SystemExit, match=r"error: --out .* is there already"):
        prune_vocabulary.main()
