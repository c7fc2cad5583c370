"""One vector per token: which tokens, of which text, through which weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedtrain.errors import DataError
from embedtrain.pooling.multi_vector import MultiVectorPooling
from embedtrain.types import RaggedTokens

HIDDEN, DOT, COMMA = 6, 90, 91
QUERY, DOCUMENT = [1, 10, DOT, 2], [1, 11, COMMA, 12, DOT, 2]
SHORT = [1, DOT]


def ragged(skip=(0, 0, 0)):
    queries = RaggedTokens.from_lists([QUERY], skip=skip[:1], role="query")
    return RaggedTokens.cat([queries, RaggedTokens.from_lists([DOCUMENT, SHORT], skip=skip[1:], role="document")])


def states(tokens, seed=0):
    return torch.randn(tokens.num_tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def head(**options):
    torch.manual_seed(0)
    return MultiVectorPooling(hidden_size=HIDDEN, punctuation_ids=(DOT, COMMA), **options)


def loop(pooling, hidden, tokens):
    """[(vectors of one text)] by the words of the docstring."""
    found = []
    for text, (start, stop) in enumerate(tokens.spans.tolist()):
        vectors = []
        for position in range(start, stop):
            is_first = position == int(tokens.offsets[text])
            is_punctuation = int(tokens.ids[position]) in (DOT, COMMA) and not tokens.is_query[text]
            if (pooling.skip_first and is_first) or (pooling.skip_punctuation and is_punctuation):
                continue
            vector = hidden[position]
            if pooling.linear is not None:
                vector = pooling.linear.weight @ vector
                vector = vector if pooling.linear.bias is None else vector + pooling.linear.bias
            vectors.append(vector)
        found.append(torch.stack(vectors) if vectors else torch.zeros(0, pooling.output_dim))
    return found


@pytest.mark.parametrize("skip", [(0, 0, 0), (2, 1, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dim": 3, "bias": True},
        {"dim": None, "skip_punctuation": False},
        {"dim": 4, "skip_first": True},
        {"dim": 4, "skip_first": True, "skip_punctuation": False},
    ],
)
def test_every_kept_token_has_its_vector(options, skip):
    pooling, tokens = head(**options), ragged(skip)
    hidden = states(tokens)
    made = pooling(hidden, tokens)
    expected = loop(pooling, hidden, tokens)
    assert made.offsets.diff().tolist() == [len(vectors) for vectors in expected]
    torch.testing.assert_close(made.values, torch.cat(expected))
    assert made.dim == pooling.output_dim


def test_a_text_may_keep_no_token():
    made = head(skip_first=True)(states(ragged()), ragged())
    assert made.offsets.diff().tolist() == [3, 3, 0]
    assert len(made.select(torch.tensor([2])).values) == 0


def test_punctuation_needs_a_role_and_says_so():
    tokens = replace(ragged(), is_query=None)
    assert len(head(skip_punctuation=False)(states(tokens), tokens).values) == tokens.num_tokens
    with pytest.raises(DataError, match="do not say whether they are queries or documents"):
        head()(states(tokens), tokens)


def test_roles_survive_selection():
    tokens = ragged().select(torch.tensor([2, 0]))
    assert tokens.is_query.tolist() == [False, True]
    assert head()(states(tokens), tokens).offsets.diff().tolist() == [1, 4]
