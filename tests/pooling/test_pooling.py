"""Each head against a slow loop over texts, on spans that leave tokens out."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling as ReferencePooling

from embedtrain.pooling.cls import ClsPooling
from embedtrain.pooling.eos import EosPooling
from embedtrain.pooling.first_last import FirstLastPooling
from embedtrain.pooling.max import MaxPooling
from embedtrain.pooling.mean import MeanPooling
from embedtrain.pooling.weighted_mean import WeightedMeanPooling
from embedtrain.types import RaggedTokens

LENGTHS = (5, 1, 7, 3)
HIDDEN = 6


def ragged(skip=(0, 0, 0, 0)):
    return RaggedTokens.from_lists([[1] * length for length in LENGTHS], skip=skip)


def loop(head, states, skip):
    """The pooled vector of one text from its own states [L, H], as the formula says."""
    kept = range(skip, len(states))
    if head == "mean":
        return sum(states[i] for i in kept) / len(kept)
    if head == "weighted_mean":
        return sum((i + 1) * states[i] for i in kept) / sum(i + 1 for i in kept)
    if head == "max":
        return torch.stack([max(states[i, h] for i in kept) for h in range(HIDDEN)])
    return states[0] if head == "cls" else states[-1]


HEADS = {
    "mean": MeanPooling(),
    "weighted_mean": WeightedMeanPooling(),
    "max": MaxPooling(),
    "cls": ClsPooling(),
    "eos": EosPooling(),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("skip", [(0, 0, 0, 0), (2, 0, 6, 1)])
def test_a_head_reads_its_own_text_inside_the_span(name, skip):
    hidden = torch.randn(sum(LENGTHS), HIDDEN, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([loop(name, s, k) for s, k in zip(hidden.split(LENGTHS), skip, strict=True)])
    torch.testing.assert_close(HEADS[name](hidden, ragged(skip)), expected)


@pytest.mark.parametrize("prompt", [0, 2])
@pytest.mark.parametrize(("name", "mode"), [("mean", "mean"), ("weighted_mean", "weightedmean"), ("max", "max")])
def test_a_head_equals_the_module_that_it_is_exported_as(name, mode, prompt):
    lengths = (5, 3, 7, 4)
    hidden = torch.randn(sum(lengths), HIDDEN, generator=torch.Generator().manual_seed(1))
    padded = torch.nn.utils.rnn.pad_sequence(list(hidden.split(lengths)), batch_first=True)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    features = {"token_embeddings": padded, "attention_mask": mask.long(), "prompt_length": prompt}
    reference = ReferencePooling(HIDDEN, pooling_mode=mode, include_prompt=False)
    tokens = RaggedTokens.from_lists([[1] * n for n in lengths], skip=[prompt] * 4)
    torch.testing.assert_close(HEADS[name](hidden, tokens), reference(features)["sentence_embedding"])


def test_only_heads_that_read_the_last_token_ask_for_an_end_of_text():
    assert [name for name, head in HEADS.items() if getattr(head, "reads_last_token", False)] == ["eos"]


def test_eos_equals_its_exported_module_under_left_and_right_padding():
    hidden = torch.randn(sum(LENGTHS), HIDDEN, generator=torch.Generator().manual_seed(1))
    for side in ("left", "right"):
        padded = torch.nn.utils.rnn.pad_sequence(list(hidden.split(LENGTHS)), batch_first=True, padding_side=side)
        mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
        mask = mask.flip(1) if side == "left" else mask
        features = {"token_embeddings": padded, "attention_mask": mask.long()}
        expected = ReferencePooling(HIDDEN, pooling_mode="lasttoken")(features)["sentence_embedding"]
        torch.testing.assert_close(HEADS["eos"](hidden, ragged()), expected)


def test_first_last_averages_the_first_block_and_the_last_not_the_embedding():
    layers = [torch.full((sum(LENGTHS), HIDDEN), float(i)) for i in (100, 1, 50, 4)]
    assert FirstLastPooling.needs_layers
    torch.testing.assert_close(FirstLastPooling()(layers, ragged((2, 0, 6, 1))), torch.full((4, HIDDEN), 2.5))


@pytest.mark.parametrize("name", ["mean", "weighted_mean"])
def test_half_precision_states_are_added_up_in_fp32(name):
    hidden = torch.randn(4096, 2, generator=torch.Generator().manual_seed(2)).add(1).bfloat16()
    tokens = RaggedTokens.from_lists([[1] * 4096])
    exact = HEADS[name](hidden.double().float(), tokens)
    pooled = HEADS[name](hidden, tokens)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_tokens_outside_the_span_get_no_gradient(name):
    hidden = torch.randn(sum(LENGTHS), HIDDEN, requires_grad=True)
    tokens = ragged((2, 0, 6, 1))
    HEADS[name](hidden, tokens).sum().backward()
    outside = torch.ones(sum(LENGTHS), dtype=torch.bool)
    for start, stop in tokens.spans.tolist():
        outside[start:stop] = False
    if name == "cls":  # reads the first token wherever the span starts
        outside[tokens.offsets[:-1]] = False
    assert (hidden.grad[outside] == 0).all()
    assert (hidden.grad[~outside] != 0).any()
