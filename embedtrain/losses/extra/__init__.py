"""Negatives that no row brought: a batch with more documents in it, before it is contrasted. One kind per file.

A component of `loss.extra` is called with an `EmbeddingBatch` and gives one back. Documents that it adds follow those of
the batch: with the query they belong to as `owner` where there is one, else NO_OWNER.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from embedtrain.types import EmbeddingBatch


def with_documents(batch: EmbeddingBatch, values: Tensor, ids: Tensor, owner: Tensor) -> EmbeddingBatch:
    """`batch` and these documents, none of them a positive: vectors [M, E], ids [M], owner [M]."""
    relation, documents = batch.relation, batch.documents
    no_score = None if relation.scores is None else relation.scores.new_full((len(ids),), float("nan"))
    return replace(
        batch,
        documents=replace(documents, values=torch.cat([documents.values, values.to(documents.values)]), views={}),
        relation=replace(
            relation,
            document_ids=torch.cat([relation.document_ids, ids]),
            owner=torch.cat([relation.owner, owner]),
            is_positive=torch.cat([relation.is_positive, torch.zeros_like(ids, dtype=torch.bool)]),
            scores=None if relation.scores is None or no_score is None else torch.cat([relation.scores, no_score]),
        ),
    )
