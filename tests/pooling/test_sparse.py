"""Weights over the vocabulary: SPLADE's against the module of sentence-transformers, BGE-M3's against a loop."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling as ReferenceSplade

from embedtrain.pooling import splade
from embedtrain.pooling.bge_m3_sparse import BgeM3SparsePooling
from embedtrain.pooling.splade import SpladePooling
from embedtrain.types import RaggedTokens

HIDDEN, WORDS = 6, 11
LENGTHS = (5, 1, 7, 3)


def states(seed=0):
    return torch.randn(sum(LENGTHS), HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def lm_head():
    torch.manual_seed(1)
    return torch.nn.Linear(HIDDEN, WORDS)


@pytest.mark.parametrize("at_once", [1, 4, 6, 1000])
@pytest.mark.parametrize("aggregation", ["max", "sum"])
def test_splade_equals_its_module_in_sentence_transformers(aggregation, at_once, monkeypatch):
    """Value and gradient, however the tokens fall into slices: a text may lie in several."""
    monkeypatch.setattr(splade, "_LOGITS_AT_ONCE", at_once * WORDS)
    head = SpladePooling(lm_head=lm_head(), vocab_size=WORDS, aggregation=aggregation)
    ours, theirs = states().requires_grad_(), states().requires_grad_()
    made = head(ours, RaggedTokens.from_lists([[1] * n for n in LENGTHS]))
    padded = torch.nn.utils.rnn.pad_sequence(list(theirs.split(LENGTHS)), batch_first=True)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    reference = ReferenceSplade(pooling_strategy=aggregation)
    expected = reference({"token_embeddings": head.lm_head(padded), "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(made, expected)
    wanted = torch.randn(made.shape, generator=torch.Generator().manual_seed(2))
    made.backward(wanted)
    gradients = [parameter.grad.clone() for parameter in head.parameters()]
    head.zero_grad()
    expected.backward(wanted)
    torch.testing.assert_close(ours.grad, theirs.grad)
    for ours_one, parameter in zip(gradients, head.parameters(), strict=True):
        torch.testing.assert_close(ours_one, parameter.grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(head(ours, RaggedTokens.from_lists([[1] * n for n in LENGTHS])), made)


def test_splade_leaves_out_what_pooling_may_not_read():
    head = SpladePooling(lm_head=lm_head(), vocab_size=WORDS)
    hidden = states()
    made = head(hidden, RaggedTokens.from_lists([[1] * n for n in LENGTHS], skip=[2, 0, 6, 1]))
    for text, (row, skip) in enumerate(zip(hidden.split(LENGTHS), (2, 0, 6, 1), strict=True)):
        torch.testing.assert_close(made[text], head.lm_head(row[skip:]).relu().log1p().amax(0))


def test_bge_m3_weighs_the_words_of_a_text_and_no_other():
    special, texts = (0, 2), [[0, 7, 5, 7, 2], [0], [0, 7, 7, 9, 3, 7, 2], [3, 4, 4]]
    torch.manual_seed(0)
    head = BgeM3SparsePooling(hidden_size=HIDDEN, vocab_size=WORDS, special_ids=special)
    torch.nn.init.constant_(head.linear.bias, 0.1)
    hidden = states().requires_grad_()
    tokens = RaggedTokens.from_lists(texts, skip=[0, 0, 1, 0])
    made = head(hidden, tokens)
    expected = torch.zeros(len(texts), WORDS)
    for text, (start, stop) in enumerate(tokens.spans.tolist()):
        for position in range(start, stop):
            word = int(tokens.ids[position])
            weight = max(0.0, head.linear(hidden[position]).item())
            if word not in special:
                expected[text, word] = max(float(expected[text, word]), weight)
    torch.testing.assert_close(made, expected)
    assert (expected > 0).sum() > 3
    made.sum().backward()
    read = torch.tensor([i not in special for text in texts for i in text])
    assert (hidden.grad[~read] == 0).all()
    assert (hidden.grad[read] != 0).any()
