"""Examples to a token batch, with the relation of its queries and documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from embedtrain.data.late_chunking import encode_chunks
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.types import NO_LABEL, RaggedTokens, Relation, Role, TokenBatch, TrainingExample, table_of, text_id


def take(example: TrainingExample, positives: Sequence[int], negatives: Sequence[int]) -> TrainingExample:
    """The example with these of its positives and hard negatives alone, their scores, and their places in a document."""
    kept = [*positives, *(len(example.positives) + i for i in negatives)]
    return replace(
        example,
        positives=tuple(example.positives[i] for i in positives),
        negatives=tuple(example.negatives[i] for i in negatives),
        scores=None if example.scores is None else tuple(example.scores[i] for i in kept),
        order=None if example.order is None else tuple(example.order[i] for i in kept),
    )


def collate(
    examples: Sequence[TrainingExample],
    tokenizer: TextTokenizer,
    *,
    known: Sequence[Sequence[int]] | None = None,
    share: float = 1.0,
    lengths: Mapping[str, Mapping[Role, int | None]] | None = None,
) -> TokenBatch:
    """The token batch of these queries and all documents that they bring: positives first, query by query.

    `known` are, for each query, ids of all documents known to answer it, drawn or not (default: the positives that it
    brings). Scores are NaN for examples without, labels NO_LABEL. `share` is this batch's part of its step (`TokenBatch`).
    `lengths`: by source, where its texts are cut, if not where the tokenizer cuts. The documents of an example with an
    `order` are read as one text.
    """

    def cut(source: str, role: Role) -> int | None:
        return (lengths or {}).get(source, {}).get(role)

    documents = [(number, text) for number, e in enumerate(examples) for text in (*e.positives, *e.negatives)]
    if known is None:
        known = [[text_id(text) for text in example.positives] for example in examples]
    queries, cut_queries = tokenizer.encode(
        [e.query for e in examples],
        role="query",
        source=[e.source for e in examples],
        instructions=[e.instruction for e in examples],
        max_lengths=[cut(e.source, "query") for e in examples],
    )
    alone = [(number, text) for number, text in documents if examples[number].order is None]
    tokens, cut_documents = tokenizer.encode(
        [text for _, text in alone],
        role="document",
        source=[examples[number].source for number, _ in alone],
        instructions=[examples[number].instruction for number, _ in alone],
        max_lengths=[cut(examples[number].source, "document") for number, _ in alone],
    )
    together = [number for number, example in enumerate(examples) if example.order is not None]
    if together:
        whole = encode_chunks(
            tokenizer,
            [(*examples[number].positives, *examples[number].negatives) for number in together],
            order=[examples[number].order or () for number in together],
            source=[examples[number].source for number in together],
            max_lengths=[cut(examples[number].source, "document") for number in together],
        )
        # Back to query by query: the stable sort keeps the documents of a query as they are.
        owners = torch.tensor([number for number, _ in alone] + together)
        tokens = RaggedTokens.cat([tokens, whole]).select(torch.argsort(owners, stable=True))
    scored = any(example.scores is not None for example in examples)
    labelled = any(example.label is not None for example in examples)
    relation = Relation(
        query_ids=_ints(text_id(e.query) for e in examples),
        document_ids=_ints(text_id(text) for _, text in documents),
        owner=_ints(number for number, _ in documents),
        is_positive=torch.tensor(
            [flag for e in examples for flag in (*(True for _ in e.positives), *(False for _ in e.negatives))],
            dtype=torch.bool,
        ),
        known_ids=_ints(i for ids in known for i in ids),
        known_offsets=_ints(accumulate((len(ids) for ids in known), initial=0)),
        scores=torch.tensor([s for e in examples for s in _scores(e)], dtype=torch.float32) if scored else None,
        labels=_ints(NO_LABEL if e.label is None else text_id(e.label) for e in examples) if labelled else None,
        sources=_ints(text_id(table_of(e.source)) for e in examples),
    )
    return TokenBatch(
        queries=queries,
        documents=tokens,
        relation=relation,
        share=share,
        num_truncated=cut_queries + cut_documents,
        rows=tuple(e.row for e in examples),
        sources=tuple(e.source for e in examples),
    )


def _scores(example: TrainingExample) -> Sequence[float]:
    return example.scores or (math.nan,) * (len(example.positives) + len(example.negatives))


def _ints(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
