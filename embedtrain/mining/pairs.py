"""(query, document) pairs of candidates, as a stronger model is asked about them."""

from __future__ import annotations

import numpy as np
import torch

from embedtrain.data.draws import Ints, expand
from embedtrain.mining.records import Candidates, MiningData


def positives_of(data: MiningData, queries: Ints) -> tuple[Ints, Ints]:
    """The positives of these queries, one after the other: whose each is (a place in `queries`), and its document."""
    first, last = data.positive_offsets[queries], data.positive_offsets[queries + 1]
    owner, number = expand(last - first)
    return owner, data.positives[first[owner] + number]


def kept_pairs(block: Candidates) -> tuple[Ints, Ints]:
    """(queries, documents): all candidates that are kept, row by row, and then all positives."""
    row, column = (place.numpy() for place in torch.nonzero(block.kept, as_tuple=True))
    owner, positives = positives_of(block.data, block.queries)
    return (
        np.concatenate([block.queries[row], block.queries[owner]]),
        np.concatenate([block.documents.numpy()[row, column], positives]),
    )
