"""The CPU kernel against the plain formula, text by text, and its gradient in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from embedtrain.backbones import attention as choice
from embedtrain.backbones import grouped_attention as kernel
from embedtrain.backbones.grouped_attention import grouped_attention
from embedtrain.backbones.padded_attention import padded_attention
from embedtrain.backbones.position_bias import Alibi
from embedtrain.backbones.ragged import RaggedLayout, Visibility

LENGTHS = (7, 7, 7, 4, 3, 3, 1)
SEEN = (7, 2, 4, 3, 3, 1, 1)  # tokens at the start of each text that its tokens see
HEADS, WIDTH, SCALE = 4, 5, 0.7
FULL, CAUSAL = Visibility(), Visibility(right=0)
WINDOWS = [FULL, CAUSAL, Visibility(left=2, right=0), Visibility(left=2, right=2), Visibility(left=100, right=1)]


def inputs(kv_heads=HEADS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    shapes = [(HEADS, tokens, WIDTH), (kv_heads, tokens, WIDTH), (kv_heads, tokens, WIDTH + 1)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def slow(q, k, v, visibility, keep=None, bias=lambda head, i, j, length: 0.0, seen_of=LENGTHS):
    """softmax(scale q k' + bias) v for each text, head, query. `keep` [text][head]: factors on the probabilities.

    seen_of: tokens of each text that are seen; a query that sees none has zeros.
    """
    out, start = [], 0
    for text, length in enumerate(LENGTHS):
        rows = []
        for i in range(start, start + length):
            left = start if visibility.left is None else max(start, i - visibility.left)
            last = start + seen_of[text] - 1
            right = last if visibility.right is None else min(last, i + visibility.right)
            if right < left:
                rows.append(v.new_zeros(HEADS, v.shape[2]))
                continue
            seen = slice(left, right + 1)
            heads = []
            for head in range(HEADS):
                kv = head * k.shape[0] // HEADS
                added = [bias(head, i - start, j - start, length) for j in range(left, right + 1)]
                p = torch.softmax(SCALE * (k[kv, seen] @ q[head, i]) + torch.tensor(added, dtype=q.dtype), 0)
                if keep is not None:
                    p = p * keep[text][head][i - start, left - start : right + 1 - start]
                heads.append(p @ v[kv, seen])
            rows.append(torch.stack(heads))
        out.append(torch.stack(rows))
        start += length
    return torch.cat(out)


@pytest.mark.parametrize("visibility", WINDOWS, ids=str)
@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
@pytest.mark.parametrize(
    ("attention", "tile"),
    [(grouped_attention, 1), (grouped_attention, 100), (grouped_attention, 1 << 18), (padded_attention, None)],
)
@pytest.mark.parametrize("seen", [None, SEEN], ids=["all seen", "some unseen"])
def test_values_and_gradients_are_those_of_the_formula(visibility, kv_heads, attention, tile, seen, monkeypatch):
    monkeypatch.setattr(kernel, "_TILE", tile)
    q, k, v = inputs(kv_heads)
    out = attention(q, k, v, layout=RaggedLayout(LENGTHS, seen), visibility=visibility, scale=SCALE)
    expected = slow(q, k, v, visibility, seen_of=seen or LENGTHS)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((out * upstream).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * upstream).sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("visibility", [FULL, CAUSAL], ids=str)
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
def test_dropout_is_on_the_probabilities_and_its_gradient_is_exact(visibility, kv_heads, monkeypatch):
    drawn = []

    def recorded(shape, probability):
        keep, rescale = keep_mask(shape, probability)
        drawn.append(keep.double() * rescale)
        return keep, rescale

    keep_mask = kernel.keep_mask
    monkeypatch.setattr(kernel, "keep_mask", recorded)
    q, k, v = inputs(kv_heads)
    torch.manual_seed(0)
    out = grouped_attention(q, k, v, layout=RaggedLayout(LENGTHS), visibility=visibility, scale=SCALE, dropout=0.3)
    keep = []
    for group, (_, texts, length) in zip(drawn, RaggedLayout(LENGTHS).groups, strict=True):
        keep += list(group.view(texts, HEADS, length, length))
    expected = slow(q, k, v, visibility, keep)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn_like(out)
    ours = torch.autograd.grad((out * upstream).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * upstream).sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


SLOPES = (0.5, 0.25, 0.125, 2.0)


@pytest.mark.parametrize("visibility", [FULL, CAUSAL, Visibility(left=2, right=2)], ids=str)
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize(
    ("attention", "tile"),
    [(grouped_attention, 1), (grouped_attention, 100), (grouped_attention, 1 << 18), (padded_attention, None)],
)
def test_a_bias_by_head_and_distance_is_in_values_and_gradients(visibility, kv_heads, attention, tile, monkeypatch):
    monkeypatch.setattr(kernel, "_TILE", tile)
    q, k, v = inputs(kv_heads)
    out = attention(q, k, v, layout=RaggedLayout(LENGTHS), visibility=visibility, scale=SCALE, bias=Alibi(SLOPES))
    expected = slow(q, k, v, visibility, bias=lambda head, i, j, length: -SLOPES[head] * abs(i - j))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((out * upstream).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * upstream).sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_on_cuda_the_variable_length_kernel_is_left_to_attention_without_bias_or_unseen_tokens(monkeypatch):
    monkeypatch.setattr(choice, "_varlen", object())
    query = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(4, 9, 64))
    layout = RaggedLayout(LENGTHS)
    assert choice._kernel_for(query, 0.0, None, layout) is choice._varlen_attention
    assert choice._kernel_for(query, 0.0, Alibi(SLOPES), layout) is padded_attention
    assert choice._kernel_for(query, 0.0, None, RaggedLayout(LENGTHS, SEEN)) is padded_attention


def test_gradcheck_with_dropout(monkeypatch):
    monkeypatch.setattr(kernel, "_TILE", 100)
    layout = RaggedLayout((3, 3, 2))

    def attention(q, k, v):
        torch.manual_seed(0)
        return grouped_attention(q, k, v, layout=layout, visibility=CAUSAL, scale=0.5, dropout=0.2)

    shapes = [(2, 8, 3), (1, 8, 3), (1, 8, 3)]
    tensors = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(attention, tensors)


def test_half_precision_inputs_are_computed_in_fp32():
    q, k, v = (x.detach().bfloat16() for x in inputs())
    layout = RaggedLayout(LENGTHS)
    out = grouped_attention(q, k, v, layout=layout, visibility=FULL, scale=SCALE)
    exact = grouped_attention(q.float(), k.float(), v.float(), layout=layout, visibility=FULL, scale=SCALE)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, exact.bfloat16(), rtol=0, atol=0)
