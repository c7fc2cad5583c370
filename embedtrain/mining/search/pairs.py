"""The score of given pairs of query and document: their inner product, one number on all paths.

A matrix product in fp32 rounds at every step, in an order that depends on the shapes of its blocks and on the machine: the
same pair gets scores that differ in the last digits. Products of fp32 numbers are exact in fp64, and their sum is off by so
little (1e-16 of it for each dimension) that rounding it to fp32 gives the same number whatever the order was.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embedtrain.data.draws import Ints
from embedtrain.mining.records import NO_DOCUMENT, SearchRequest, Vectors

PAIRS_AT_ONCE = 8192


def bytes_per_pair(dim: int) -> int:
    """Of one pair in a block: both rows as they are read (with a copy), gathered, in fp64, and their product."""
    return 48 * dim + 64


def pair_scores(request: SearchRequest, queries: Ints, documents: Ints, *, pairs_at_once: int | None = None) -> Tensor:
    """[n] fp32, CPU: of n pairs, by number; NaN where the document is NO_DOCUMENT.

    Memory: 40 bytes per pair, and a block of `pairs_at_once`, by default a quarter of the cap at most.
    """
    assert request.queries is not None, "pairs are scored by vectors"
    assert request.documents is not None, "pairs are scored by vectors"
    if pairs_at_once is None:
        pairs_at_once = max(1, min(PAIRS_AT_ONCE, request.max_memory // 4 // bytes_per_pair(request.documents.dim)))
    return inner_products_of_pairs(
        request.queries, request.documents, queries, documents, request.device, pairs_at_once=pairs_at_once
    )


def inner_products_of_pairs(
    query_vectors: Vectors,
    document_vectors: Vectors,
    queries: Ints,
    documents: Ints,
    device: torch.device,
    *,
    pairs_at_once: int = PAIRS_AT_ONCE,
) -> Tensor:
    """As `pair_scores`. Documents are read in their order, each block's once."""
    scores = torch.full((len(documents),), torch.nan)
    order = np.argsort(documents, kind="stable")
    order = order[np.searchsorted(documents[order], NO_DOCUMENT, side="right") :]
    for start in range(0, len(order), pairs_at_once):
        block = order[start : start + pairs_at_once]
        left = _rows(query_vectors, queries[block], device)
        right = _rows(document_vectors, documents[block], device)
        scores[torch.from_numpy(block)] = (left.double() * right.double()).sum(dim=1).float().cpu()
    return scores


def _rows(vectors: Vectors, index: Ints, device: torch.device) -> Tensor:
    """[n, E] fp32; a row that is asked for several times is read once."""
    distinct, place = np.unique(index, return_inverse=True)
    return torch.from_numpy(vectors.rows(distinct)).to(device)[torch.from_numpy(place).to(device)]
