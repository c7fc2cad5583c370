"""Which tokens are hidden is a function of seed, step and text: never of the rank, the chunk or the other texts."""

from __future__ import annotations

import pytest
import torch

from embedtrain.data.prompts import Prompts
from embedtrain.errors import ConfigError
from embedtrain.objectives.masking import Masker, count, words
from embedtrain.objectives.texts import single_texts
from embedtrain.objectives.words import Words
from embedtrain.types import NO_TARGET, RaggedTokens
from tests.objectives.helpers import batch_of, encoder_for, examples, folder_of, objective_for


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return encoder_for("masked_lm", folder_of("masked_lm", tmp_path_factory.mktemp("model")))


def masker(encoder, **changes):
    settings = {"share": 0.3, "masked": 0.8, "random": 0.1, "mask_token": None} | changes
    return Masker(encoder.tokenizer, **settings)


def long_texts(encoder, count=40, length=40):
    draw = torch.Generator().manual_seed(0)
    body = torch.randint(1000, 20_000, (count, length), generator=draw).tolist()
    cls, sep = encoder.tokenizer.hf.cls_token_id, encoder.tokenizer.hf.sep_token_id
    return RaggedTokens.from_lists([[cls, *text, sep] for text in body])


def test_a_share_of_the_words_is_hidden_as_bert_does_it_and_nothing_else_changes(encoder):
    tokens = long_texts(encoder)
    read, labels = masker(encoder)(tokens, torch.arange(40))
    chosen = labels.ids != NO_TARGET
    assert count(labels).tolist() == [12] * 40  # round(0.3 * 40)
    assert torch.equal(labels.ids[chosen], tokens.ids[chosen])
    assert torch.equal(read.ids[~chosen], tokens.ids[~chosen])
    assert not torch.isin(tokens.ids[chosen], torch.tensor(encoder.tokenizer.hf.all_special_ids)).any()
    masked = (read.ids[chosen] == encoder.tokenizer.hf.mask_token_id).double().mean()
    kept = (read.ids[chosen] == tokens.ids[chosen]).double().mean()
    assert masked == pytest.approx(0.8, abs=0.05)
    assert kept == pytest.approx(0.1, abs=0.05)


def test_every_text_has_something_to_predict_and_another_seed_hides_other_words(encoder):
    cls, sep = encoder.tokenizer.hf.cls_token_id, encoder.tokenizer.hf.sep_token_id
    tokens = RaggedTokens.from_lists([[cls, 2003, sep], [cls, sep]])
    assert count(masker(encoder)(tokens, torch.tensor([1, 2]))[1]).tolist() == [1, 0]
    long = long_texts(encoder)
    first, second = (masker(encoder)(long, torch.arange(40) + shift)[1].ids for shift in (0, 40))
    assert not torch.equal(first, second)


def test_masks_do_not_depend_on_what_else_is_in_the_batch(encoder):
    objective = objective_for("masked_lm", encoder)
    whole = objective.prepare(batch_of(0, 6, encoder), 7)
    parts = [objective.prepare(batch_of(i, i + 1, encoder), 7) for i in range(6)]
    by_text = {
        (int(seed), tuple(whole.texts["text"].select(torch.tensor([n])).ids.tolist()))
        for n, seed in enumerate(whole.seeds)
    }
    found = {
        (int(seed), tuple(part.texts["text"].select(torch.tensor([n])).ids.tolist()))
        for part in parts
        for n, seed in enumerate(part.seeds)
    }
    assert found == by_text
    assert sum(map(len, parts)) == len(whole)


def test_another_step_hides_other_words(encoder):
    objective, batch = objective_for("masked_lm", encoder), batch_of(0, 6, encoder)
    first, again, other = (objective.prepare(batch, seed).labels["masked_lm"].ids for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_text_that_is_its_own_positive_is_read_once(encoder):
    batch = batch_of(0, 6, encoder)
    tokens, _, rows = single_texts(batch, 0)
    rows_read = [f"file:{i}" for i in range(6)]
    rows_read += [
        f"file:{i}" for i, e in enumerate(examples(0, 6)) for d in (*e.positives, *e.negatives) if d != e.query
    ]
    assert list(rows) == rows_read
    assert len(tokens) == len(rows) < len(batch.queries) + len(batch.documents)


def test_a_prompt_that_pooling_leaves_out_is_neither_hidden_nor_predicted(tmp_path):
    prompts = Prompts(query="find the river: ", pool_prompt=False)
    encoder = encoder_for("masked_lm", folder_of("masked_lm", tmp_path), prompts=prompts)
    batch = batch_of(0, 6, encoder)
    labels = words(batch.queries, torch.tensor(encoder.tokenizer.hf.all_special_ids))
    for n in range(6):
        start, stop = batch.queries.spans[n].tolist()
        own = labels.ids[batch.queries.offsets[n] : batch.queries.offsets[n + 1]]
        assert start - int(batch.queries.offsets[n]) == 5  # [CLS] find the river :
        assert (own[:5] == NO_TARGET).all()
        assert int((own != NO_TARGET).sum()) == stop - start - 1  # but [SEP]


def test_the_label_of_mntp_stands_one_place_before_its_word_and_never_in_another_text(tmp_path):
    encoder = encoder_for("mntp", folder_of("mntp", tmp_path))
    objective, batch = objective_for("mntp", encoder, share=0.9, masked=1.0, random=0.0), batch_of(0, 6, encoder)
    task = objective.prepare(batch, 0)
    read, labels = task.texts["text"], task.labels["mntp"]
    original = single_texts(batch, 0)[0]
    for start, stop in zip(read.offsets[:-1].tolist(), read.offsets[1:].tolist(), strict=True):
        hidden = [i for i in range(start, stop) if read.ids[i] != original.ids[i]]
        labelled = [i for i in range(start, stop) if labels.ids[i] != NO_TARGET]
        assert labelled == [i - 1 for i in hidden]
        assert labels.ids[labelled].tolist() == original.ids[hidden].tolist()
        assert start not in hidden


def test_what_a_word_sees_in_the_decoder_is_drawn_for_each_word_and_never_itself(tmp_path):
    encoder = encoder_for("retromae", folder_of("retromae", tmp_path))
    objective = objective_for("retromae", encoder)
    tokens = long_texts(encoder, count=3)
    found = Words.of(words(tokens, objective.masker.special))
    visible = objective._visible(found, torch.tensor([5, 6, 5]))
    assert visible.shape == (3, 40, 41)
    assert visible[..., 0].all()  # the embedding
    others = visible[..., 1:]
    assert not others.diagonal(dim1=1, dim2=2).any()
    assert others.double().mean() == pytest.approx(0.5 * 39 / 40, abs=0.05)
    assert torch.equal(others[0], others[2])
    assert not torch.equal(others[0], others[1])
    assert others[0].unique(dim=0).shape[0] == 40


@pytest.mark.parametrize(
    ("name", "options", "changes", "said"),
    [
        ("masked_lm", {}, {"share": 0.0}, r"objective\.share=0\.0: expected a part"),
        ("masked_lm", {}, {"masked": 0.8, "random": 0.3}, r"parts of the hidden words"),
        ("masked_lm", {}, {"mask_token": "two words"}, r"expected one token, but .* makes 2"),
        ("retromae", {}, {"decoder_share": 1.5}, r"objective\.decoder_share=1\.5"),
        ("retromae", {}, {"bag_of_words": -1.0}, r"objective\.bag_of_words=-1\.0"),
        ("translation", {}, {"rebuild": "target"}, r"expected one of document, query, both"),
        ("translation", {}, {"layers": 0}, r"objective\.layers=0"),
        ("reconstruction", {}, {"query_to_document": 0.0, "document_to_query": 0.0}, r"not both 0"),
        ("reconstruction", {"attention": "bidirectional"}, {}, r"backbone\.attention: bidirectional, but .* causal"),
        ("causal_lm", {"attention": "bidirectional"}, {}, r"backbone\.attention: bidirectional, but .* causal"),
        ("mntp", {"attention": "causal"}, {}, r"Set backbone\.attention=bidirectional"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_its_key(name, options, changes, said, tmp_path):
    encoder = encoder_for(name, folder_of(name, tmp_path), **options)
    with pytest.raises(ConfigError, match=said):
        objective_for(name, encoder, **changes)


def test_the_direction_is_known_without_running_the_model(tmp_path):
    folder = folder_of("mntp", tmp_path)
    with torch.device("meta"), pytest.raises(ConfigError, match=r"backbone\.attention: causal"):
        objective_for("mntp", encoder_for("mntp", folder, attention="causal", weights="random"))


def test_a_decoder_without_a_mask_token_asks_for_one(tmp_path):
    encoder = encoder_for("mntp", folder_of("mntp", tmp_path))
    assert encoder.tokenizer.hf.mask_token is None
    with pytest.raises(ConfigError, match=r"no mask token of its own.*objective\.mask_token='_'"):
        Masker(encoder.tokenizer, share=0.2, masked=0.8, random=0.1, mask_token=None)
    underscore = Masker(encoder.tokenizer, share=0.2, masked=0.8, random=0.1, mask_token="_")
    assert encoder.tokenizer.hf.convert_ids_to_tokens(underscore.mask_id) == "_"
