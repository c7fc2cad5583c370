"""Learned tokens: vectors of no word, put behind a text through the real tokenizer and backbone."""

from __future__ import annotations

import pytest
import torch

from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.data.prompts import Prompts
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError, DataError
from embedtrain.pooling.learned_tokens import LearnedTokensPooling, closing_ids
from embedtrain.pooling.mean import MeanPooling
from embedtrain.types import RaggedTokens
from tests.helpers.models import tiny_model_dir

TEXTS = ["a cat", "the quick brown fox", "maps", "two words " * 20]
NUMBER = {"query": 2, "document": 3}


def encoder(folder, *, dim=None, length=16, **options):
    torch.manual_seed(0)
    backbone = TransformerBackbone(name=folder, **options)
    pooling = LearnedTokensPooling(
        hidden_size=32, vocab_size=backbone.config.vocab_size, num_query_tokens=2, num_document_tokens=3, dim=dim
    )
    torch.nn.init.normal_(pooling.vectors)
    tokenizer = TextTokenizer(
        tokenizer=backbone.tokenizer(),
        prompts=Prompts(),
        max_query_length=length,
        max_document_length=length,
        closing_ids=closing_ids(pooling),
    )
    return Encoder(backbone=backbone, pooling=pooling, tokenizer=tokenizer, normalize=False).eval()


def by_hand(model, text, role):
    """The states of the tokens behind one text, from transformers alone."""
    room = model.tokenizer.max_length[role] - NUMBER[role]
    ids = model.tokenizer.hf(text, truncation=True, max_length=room, return_tensors="pt")["input_ids"]
    vectors = model.pooling.vectors[:2] if role == "query" else model.pooling.vectors[2:]
    inputs = torch.cat([model.backbone.hf_model.get_input_embeddings()(ids)[0], vectors])
    mask = torch.ones(1, len(inputs), dtype=torch.long)
    states = model.backbone.hf_model(inputs_embeds=inputs[None], attention_mask=mask).last_hidden_state[0]
    states = states[-NUMBER[role] :]
    return states if model.pooling.linear is None else model.pooling.linear(states)


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("architecture", ["bert", "qwen3"])
@pytest.mark.parametrize("kernel", ["ragged", "padded"])
def test_the_vectors_of_a_text_are_the_states_of_the_tokens_behind_it(kernel, architecture, role, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    model, plain = encoder(folder, kernel=kernel, dim=5), encoder(folder, kernel="padded", dim=5)
    made = model.encode_embeddings(TEXTS, role=role)
    assert made.offsets.diff().tolist() == [NUMBER[role]] * len(TEXTS)
    expected = torch.cat([by_hand(plain, text, role) for text in TEXTS])
    torch.testing.assert_close(made.values, expected.detach(), rtol=1e-4, atol=1e-5)


def test_they_train_beside_frozen_weights(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path), lora={"r": 2})
    both = [model.tokenizer.encode(TEXTS, role=role)[0] for role in NUMBER]
    model(RaggedTokens.cat(both)).values.square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert "pooling.vectors" in trained
    assert all("lora_" in name for name in trained - {"pooling.vectors"})
    assert (model.pooling.vectors.grad.abs().sum(1) > 0).all()
    alone = encoder(tiny_model_dir("bert", tmp_path))
    alone(both[0]).values.square().sum().backward()
    assert (alone.pooling.vectors.grad[2:] == 0).all()  # of documents


def test_texts_are_cut_to_leave_them_room(tmp_path):
    tokens, truncated = encoder(tiny_model_dir("bert", tmp_path)).tokenizer.encode(TEXTS, role="document")
    assert tokens.lengths.max() == 16
    assert truncated == 1
    with pytest.raises(ConfigError, match="max_query_length=4 leaves no token for text beside 4 special tokens"):
        encoder(tiny_model_dir("bert", tmp_path), length=4)


def test_what_they_do_not_go_with_is_refused(tmp_path):
    model = encoder(tiny_model_dir("bert", tmp_path))
    with pytest.raises(ConfigError, match="Use them as the pooling: pooling=learned_tokens"):
        Encoder(backbone=model.backbone, pooling=MeanPooling(), tokenizer=model.tokenizer, views={"x": model.pooling})
    with pytest.raises(DataError, match="do not say whether they are queries or documents"):
        model(RaggedTokens.from_lists([[5, 6, 7, 8]]))
    with pytest.raises(ConfigError, match="queries end in learned tokens already"):
        TextTokenizer(
            tokenizer=model.tokenizer.hf,
            prompts=Prompts(),
            max_query_length=16,
            max_document_length=16,
            query_augmentation=8,
            closing_ids=closing_ids(model.pooling),
        )
