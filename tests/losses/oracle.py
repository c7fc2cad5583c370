"""The contrastive losses as slow, obvious loops over pairs, from the formulas and the `Relation` docstring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embedtrain.types import EmbeddingBatch, Relation


class Kinds:
    """What each pair of a relation is, by looking at all of them."""

    def __init__(self, relation: Relation):
        self.num_queries, self.num_documents = relation.num_queries, relation.num_documents
        self.texts, self.ids = relation.query_ids.tolist(), relation.document_ids.tolist()
        self.owner, self.is_positive = relation.owner.tolist(), relation.is_positive.tolist()
        known, offsets = relation.known_ids.tolist(), relation.known_offsets.tolist()
        own = [set(known[offsets[q] : offsets[q + 1]]) for q in range(self.num_queries)]
        for d in range(self.num_documents):
            if self.is_positive[d]:
                own[self.owner[d]].add(self.ids[d])
        # The ids known or brought as positive by any query with the text of q.
        self.answers: list[set[int]] = [
            set().union(*(own[other] for other in range(self.num_queries) if self.texts[other] == self.texts[q]))
            for q in range(self.num_queries)
        ]

    def kind(self, q: int, d: int) -> str:
        if self.owner[d] == q and self.is_positive[d]:
            return "positive"
        if self.ids[d] in self.answers[q]:
            return "ignore"
        return "hard negative" if self.owner[d] == q else "negative"

    def positives(self, q: int) -> list[int]:
        return [d for d in range(self.num_documents) if self.kind(q, d) == "positive"]

    def is_exception(self, term: str, row: int, column: int) -> bool:
        """Whether `column` is no negative of `row`; rows of d2* are positive documents, by number."""
        if term == "q2d":
            return self.kind(row, column) in ("positive", "ignore")
        if term == "d2q":
            return self.kind(column, row) in ("positive", "ignore")
        if term == "q2q":
            return self.texts[row] == self.texts[column] or bool(self.answers[row] & self.answers[column])
        both_answer = any({self.ids[row], self.ids[column]} <= answers for answers in self.answers)
        return self.owner[row] == self.owner[column] or both_answer


def infonce(
    batch: EmbeddingBatch,
    *,
    temperature: float | Tensor = 0.05,
    terms: Sequence[str] = ("q2d",),
    partition: str = "joint",
    negatives: str = "in_batch",
    positives: str = "each",
    hardness: dict | None = None,
    false_negative_margin: dict | None = None,
) -> tuple[Tensor, int]:
    """The loss over the batch's rows, and how many pairs the margin took out."""
    kinds, vectors = Kinds(batch.relation), {"q": batch.queries.values, "d": batch.documents.values}
    hardness, margin = hardness or {"alpha": 0.0}, false_negative_margin
    filtered = 0

    def similarity(term: str, row: int, column: int) -> Tensor:
        return vectors[term[0]][row] @ vectors[term[2]][column]

    def negative_sum(term: str, row: int, best: Tensor) -> Tensor:
        """The sum of e^logit over the negatives of a row; `best`: similarity of its best positive."""
        nonlocal filtered
        total = torch.zeros((), dtype=best.dtype)
        for column in range(len(vectors[term[2]])):
            hard = term == "q2d" and kinds.kind(row, column) == "hard negative"
            if kinds.is_exception(term, row, column) or (negatives == "hard_only" and not hard):
                continue
            s = similarity(term, row, column)
            if margin and (margin.get("curated") or not hard):
                size = margin["absolute"] if "absolute" in margin else margin["relative"] * abs(best)
                if s > best + size:
                    filtered += 1
                    continue
            weighted = hard or hardness.get("negatives", "all") == "all"
            total = total + torch.exp(s / temperature + (hardness["alpha"] * s.detach() if weighted else 0.0))
        return total

    total = torch.zeros((), dtype=vectors["q"].dtype)
    twice = max(1, len({"q2d", "d2q"} & set(terms)))
    for q in range(kinds.num_queries)[batch.rows]:
        documents = kinds.positives(q)
        if not documents:
            continue
        s = {d: similarity("q2d", q, d) for d in documents}
        e = {d: torch.exp(s[d] / temperature) for d in documents}
        best = max(s.values()).detach()
        # The negatives of each term: a number for the query, or one for each of its positive documents.
        of_query = {t: negative_sum(t, q, best) for t in terms if t[0] == "q"}
        of_pair = {t: {d: negative_sum(t, d, s[d].detach()) for d in documents} for t in terms if t[0] == "d"}
        if positives == "each":
            for d in documents:
                n = [of_query[t] if t[0] == "q" else of_pair[t][d] for t in terms]
                total = total + _row(e[d], n, partition, twice) / len(documents)
        else:
            n = [of_query[t] if t[0] == "q" else sum(of_pair[t].values()) for t in terms]
            total = total + _row(sum(e.values()), n, partition, twice)
    return total / kinds.num_queries, filtered


def _row(positive: Tensor, negatives: list[Tensor], partition: str, twice: int) -> Tensor:
    if partition == "joint":
        return -torch.log(positive / (twice * positive + sum(negatives)))
    return sum(-torch.log(positive / (positive + n)) for n in negatives) / len(negatives)
