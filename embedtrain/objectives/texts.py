"""Which texts of a batch an objective works on, and a seed for each: functions of the rows, not of ranks or chunks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from embedtrain.types import RaggedTokens, TokenBatch, text_id


def single_texts(batch: TokenBatch, seed: int) -> tuple[RaggedTokens, Tensor, tuple[str, ...]]:
    """Every query, and every document but a query's own text: tokens, seeds [N], rows.

    A text without a pair is its own positive (`data=texts`), and would count twice otherwise.
    """
    relation = batch.relation
    kept = (relation.document_ids != relation.query_ids[relation.owner]).nonzero().flatten()
    owners = torch.cat([torch.arange(len(batch.queries)), relation.owner[kept]])
    ids = torch.cat([relation.query_ids, relation.document_ids[kept]])
    tokens = RaggedTokens.cat([batch.queries, batch.documents.select(kept)])
    return tokens, seeds(ids.tolist(), seed), _rows(batch, owners)


def positive_pairs(
    batch: TokenBatch, seed: int, *, distinct: bool = False
) -> tuple[RaggedTokens, RaggedTokens, Tensor, tuple[str, ...]]:
    """Every query with each of its positives: tokens of both sides, seeds [P], rows. `distinct`: not with its own text."""
    relation = batch.relation
    documents = relation.is_positive.nonzero().flatten()
    if distinct:
        documents = documents[relation.document_ids[documents] != relation.query_ids[relation.owner[documents]]]
    queries = relation.owner[documents]
    pairs = zip(relation.query_ids[queries].tolist(), relation.document_ids[documents].tolist(), strict=True)
    identities = [text_id(f"{query} {document}") for query, document in pairs]
    return (
        batch.queries.select(queries),
        batch.documents.select(documents),
        seeds(identities, seed),
        _rows(batch, queries),
    )


def seeds(identities: Iterable[int], seed: int) -> Tensor:
    """One 63-bit seed for each text, from its identity and the seed of the step."""
    return torch.tensor([text_id(f"{seed} {identity}") for identity in identities], dtype=torch.int64)


def _rows(batch: TokenBatch, owners: Tensor) -> tuple[str, ...]:
    return tuple(batch.rows[owner] for owner in owners.tolist()) if batch.rows else ()
