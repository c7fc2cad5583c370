"""Random batches for tests of losses and relations: ragged, several positives, texts and documents that come again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from embedtrain.types import EmbeddingBatch, Embeddings, Needs, Relation, text_id


def random_relation(
    generator: torch.Generator,
    *,
    queries: int,
    positives: tuple[int, int] = (1, 2),
    negatives: tuple[int, int] = (0, 3),
    texts: int | None = None,
    contents: int | None = None,
    known: tuple[int, int] = (0, 2),
) -> Relation:
    """`positives`, `negatives`, `known`: least and most per query. `texts`, `contents`: how many different query texts and
    documents to draw from; few mean many duplicates, None means none at all."""

    def between(bounds: tuple[int, int]) -> int:
        return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=generator))

    def ids(count: int, distinct: int | None) -> Tensor:
        if distinct is None:
            return torch.randperm(10_000, generator=generator)[:count] * 7919 + 13  # unordered, far from 0 .. count
        return torch.randint(0, distinct, (count,), generator=generator) * 104_729 + 5

    counts = [(between(positives), between(negatives)) for _ in range(queries)]
    owner = torch.tensor([q for q, (p, n) in enumerate(counts) for _ in range(p + n)], dtype=torch.int64)
    is_positive = torch.tensor([i < p for p, n in counts for i in range(p + n)], dtype=torch.bool)
    documents = ids(owner.numel(), contents)
    lists = []
    for q in range(queries):
        extra = ids(between(known), contents) if contents is not None else documents[:0]
        lists.append(torch.cat([documents[(owner == q) & is_positive], extra]))
    return Relation(
        query_ids=ids(queries, texts),
        document_ids=documents,
        owner=owner,
        is_positive=is_positive,
        known_ids=torch.cat(lists),
        known_offsets=torch.tensor([0, *(len(x) for x in lists)]).cumsum(0),
    )


def random_batch(
    seed: int = 0,
    *,
    queries: int = 6,
    dim: int = 5,
    dtype: torch.dtype = torch.float64,
    spread: float = 1.0,
    **relation,
) -> EmbeddingBatch:
    """Unit vectors that ask for gradients, and a random relation (see there). Small `spread`: all vectors are similar."""
    generator = torch.Generator().manual_seed(seed)
    found = random_relation(generator, queries=queries, **relation)
    base = torch.randn(1, dim, generator=generator, dtype=torch.float64)

    def vectors(count: int) -> Embeddings:
        values = (1 - spread) * base + spread * torch.randn(count, dim, generator=generator, dtype=torch.float64)
        return Embeddings(torch.nn.functional.normalize(values, dim=1).to(dtype).requires_grad_())

    return EmbeddingBatch(vectors(queries), vectors(found.num_documents), found)


def aligned_batch(
    seed: int = 0, *, queries: int = 6, hard: int = 2, dim: int = 8, dtype: torch.dtype = torch.float64
) -> EmbeddingBatch:
    """One positive and `hard` hard negatives per query, nothing twice: what every library can express."""
    return random_batch(
        seed, queries=queries, dim=dim, dtype=dtype, positives=(1, 1), negatives=(hard, hard), known=(0, 0)
    )


def annotated(batch: EmbeddingBatch, *, classes: int = 3, levels: int | None = None) -> EmbeddingBatch:
    """The batch with a score in 0 .. 1 for each document, out of `levels` distinct ones if given, and classes in turn."""
    draw = torch.Generator().manual_seed(batch.relation.num_documents)
    scores = torch.rand(batch.relation.num_documents, generator=draw, dtype=torch.float64)
    if levels is not None:
        scores = torch.floor(scores * levels) / levels
    labels = torch.arange(batch.relation.num_queries) % classes * 7919
    sources = torch.full_like(labels, text_id("source"))
    return replace(batch, relation=replace(batch.relation, scores=scores, labels=labels, sources=sources))


def supplied(batch: EmbeddingBatch, needs: Needs) -> EmbeddingBatch:
    """The batch with the teachers and views that a loss needs, of the size of its embeddings; views ask for gradients."""
    draw = torch.Generator().manual_seed(batch.relation.num_documents + 1)
    kind = batch.queries.values

    def vectors(count: int) -> Embeddings:
        values = torch.randn(count, kind.shape[1], generator=draw, dtype=torch.float64)
        return Embeddings(torch.nn.functional.normalize(values, dim=1).to(kind.dtype))

    def viewed(embeddings: Embeddings) -> Embeddings:
        names = (*needs.views, *(f"layer_{layer}" for layer in needs.layers))
        return replace(embeddings, views={name: vectors(len(embeddings)).map(Tensor.requires_grad_) for name in names})

    if needs.embedding == "multi_vector":
        batch = replace(batch, queries=tokens_of(batch.queries), documents=tokens_of(batch.documents))
    taught = {
        name: replace(batch, queries=vectors(len(batch.queries)), documents=vectors(len(batch.documents)))
        for name in needs.teachers
    }
    return replace(batch, queries=viewed(batch.queries), documents=viewed(batch.documents), teachers=taught)


def tokens_of(embeddings: Embeddings) -> Embeddings:
    """Two token vectors for each text, both its embedding."""
    twice = embeddings.values.repeat_interleave(2, dim=0)
    return replace(embeddings, values=twice, offsets=torch.arange(0, 2 * len(embeddings) + 1, 2))


def with_leaves(batch: EmbeddingBatch, **changes) -> EmbeddingBatch:
    """A copy whose embeddings are leaves of their own, so that gradients do not add up; `changes` replace fields."""
    copy = replace(
        batch,
        queries=replace(batch.queries, values=batch.queries.values.detach().clone().requires_grad_()),
        documents=replace(batch.documents, values=batch.documents.values.detach().clone().requires_grad_()),
    )
    return replace(copy, **changes)


def permute_documents(batch: EmbeddingBatch, order: Tensor) -> EmbeddingBatch:
    """The same batch with its documents in another order."""
    relation = replace(
        batch.relation,
        document_ids=batch.relation.document_ids[order],
        owner=batch.relation.owner[order],
        is_positive=batch.relation.is_positive[order],
        scores=None if batch.relation.scores is None else batch.relation.scores[order],
    )
    documents = replace(batch.documents, values=batch.documents.values[order].detach().requires_grad_())
    return replace(with_leaves(batch), documents=documents, relation=relation)
