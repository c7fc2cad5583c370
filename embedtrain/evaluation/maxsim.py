"""MaxSim of all queries with all documents at hand (ColBERT, arXiv:2004.12832, eq. 3), in bounded memory.

    s(q, d) = sum over the query's vectors of the largest inner product with a vector of the document

Products of vectors exist for one tile of queries and documents at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from embedtrain.types import Embeddings

# Inner products at a time: 128 MiB in fp32.
_PRODUCTS = 2**25
_QUERY_VECTORS = 2048


def maxsim_blocks(queries: Embeddings, documents: Embeddings, query_block: int) -> Iterator[Tensor]:
    """[B, D] for every block of at most `query_block` queries. A document without vectors is less similar than any other."""
    for block in _blocks(queries, query_block, _QUERY_VECTORS):
        size = max(1, _PRODUCTS // max(1, len(block.values)))
        yield torch.cat([_maxsim(block, part) for part in _blocks(documents, len(documents), size)], dim=1)


def _maxsim(queries: Embeddings, documents: Embeddings) -> Tensor:
    """[Q, D] of one tile."""
    products = documents.values @ queries.values.T
    best = torch.segment_reduce(products, "max", lengths=_counts(documents), axis=0, initial=float("-inf"))
    return torch.segment_reduce(best.T.contiguous(), "sum", lengths=_counts(queries), axis=0)


def _counts(texts: Embeddings) -> Tensor:
    assert texts.offsets is not None
    return texts.offsets.diff().to(texts.values.device)


def _blocks(texts: Embeddings, at_most: int, vectors: int) -> Iterator[Embeddings]:
    """Neighbouring texts, at most so many, of about so many vectors together."""
    assert texts.offsets is not None
    starts = texts.offsets.tolist()
    first = 0
    while first < len(texts):
        end = first + 1
        while end < len(texts) and end - first < at_most and starts[end + 1] - starts[first] <= vectors:
            end += 1
        offsets = texts.offsets[first : end + 1]
        yield Embeddings(texts.values[starts[first] : starts[end]], texts.normalized, offsets - offsets[0])
        first = end
