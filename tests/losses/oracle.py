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
            if self.is_positive[d]:  # nobody's documents are never positive
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
    false_negatives: dict | None = None,
    guide: dict | None = None,
    same_class: bool = False,
    scope: str | None = None,
    hardest: int | None = None,
    near: float | None = None,
    decoupled: bool = False,
    margin: float = 0.0,
    focal: float = 0.0,
) -> tuple[Tensor, int]:
    """The loss over the batch's rows, and how many pairs the filters took out."""
    kinds, vectors = Kinds(batch.relation), {"q": batch.queries.values, "d": batch.documents.values}
    hardness = hardness or {"alpha": 0.0}
    filtered = 0

    def guided(term: str, row: int, column: int) -> Tensor:
        teacher = batch.teacher(guide["teacher"])
        sides = {"q": teacher.queries.values, "d": teacher.documents.values}
        return sides[term[0]][row] @ sides[term[2]][column]

    def guide_limit(term: str, row: int) -> Tensor:
        """From the guide's similarity of the row's best positive."""
        if term[0] == "q":
            best = max(guided("q2d", row, d) for d in kinds.positives(row))
        else:
            best = guided("q2d", kinds.owner[row], row)
        if "absolute" in guide:
            return best - guide["absolute"]
        return best - guide["relative"] * abs(best) if "relative" in guide else torch.tensor(guide["threshold"])

    def class_of(kind: str, number: int) -> int:
        labels = batch.relation.labels.tolist()
        if kind == "q":
            return labels[number]
        return labels[kinds.owner[number]] if kinds.is_positive[number] else -1

    def suspect(term: str, row: int, column: int, s: Tensor, best: Tensor, hard: bool) -> bool:
        found = False
        if false_negatives and (false_negatives.get("curated") or not hard):
            f = false_negatives
            found |= bool(s > best + (f["absolute"] if "absolute" in f else f["relative"] * abs(best)))
        if guide and (guide.get("curated", True) or not hard):
            g, limit = guided(term, row, column), guide_limit(term, row)
            found |= bool(g >= limit if "threshold" in guide else g > limit)
        if same_class and class_of(term[0], row) != -1:
            found |= class_of(term[0], row) == class_of(term[2], column)
        return found

    def similarity(term: str, row: int, column: int) -> Tensor:
        return vectors[term[0]][row] @ vectors[term[2]][column]

    def negative_sum(term: str, row: int, best: Tensor, weakest: Tensor) -> Tensor:
        """The sum of e^logit over the negatives of a row; `best`, `weakest`: similarities of its positives."""
        nonlocal filtered
        kept = []
        for column in range(len(vectors[term[2]])):
            hard = term == "q2d" and kinds.kind(row, column) == "hard negative"
            if kinds.is_exception(term, row, column) or (negatives == "hard_only" and not hard):
                continue
            s = similarity(term, row, column)
            if suspect(term, row, column, s, best, hard):
                filtered += 1
                continue
            stays = {None: True, "own": hard, "others": not hard, "none": False}[scope]
            if term[2] == "d" and not kinds.is_positive[column] and not stays:
                continue
            if near is not None and not s > weakest - near:
                continue
            kept.append((s, hard))
        if hardest is not None:
            kept = sorted(kept, key=lambda pair: -float(pair[0].detach()))[:hardest]
        total = torch.zeros((), dtype=best.dtype)
        for s, hard in kept:
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
        e = {d: torch.exp((s[d] - margin) / temperature) for d in documents}
        best, weakest = max(s.values()).detach(), min(s.values()).detach()
        # The negatives of each term: a number for the query, or one for each of its positive documents.
        of_query = {t: negative_sum(t, q, best, weakest) for t in terms if t[0] == "q"}
        of_pair = {
            t: {d: negative_sum(t, d, s[d].detach(), s[d].detach()) for d in documents} for t in terms if t[0] == "d"
        }
        loss = torch.zeros_like(total)
        if positives == "each":
            for d in documents:
                n = [of_query[t] if t[0] == "q" else of_pair[t][d] for t in terms]
                loss = loss + _row(e[d], n, partition, twice, decoupled) / len(documents)
        else:
            n = [of_query[t] if t[0] == "q" else sum(of_pair[t].values()) for t in terms]
            loss = loss + _row(sum(e.values()), n, partition, twice, decoupled)
        total = total + (1 - torch.exp(-loss.detach())).clamp(min=0) ** focal * loss
    return total / kinds.num_queries, filtered


def _row(positive: Tensor, negatives: list[Tensor], partition: str, twice: int, decoupled: bool) -> Tensor:
    if partition == "joint":
        inside = sum(negatives) + (0 if decoupled else twice * positive)
        return -torch.log(positive / inside) if inside > 0 else 0 * positive
    each = [n + (0 if decoupled else positive) for n in negatives]
    return sum(-torch.log(positive / x) if x > 0 else 0 * positive for x in each) / len(negatives)


def sigmoid(batch: EmbeddingBatch, *, temperature: float, bias: float | Tensor, terms: Sequence[str]) -> Tensor:
    """SigLIP's loss over the batch's rows: the positives' terms averaged, the negatives' added up."""
    kinds, vectors = Kinds(batch.relation), {"q": batch.queries.values, "d": batch.documents.values}

    def minus_log_sigmoid(x: Tensor) -> Tensor:
        return torch.log(1 + torch.exp(-x))

    def logit(term: str, row: int, column: int) -> Tensor:
        return vectors[term[0]][row] @ vectors[term[2]][column] / temperature + bias

    def negatives(term: str, row: int) -> Tensor:
        columns = [c for c in range(len(vectors[term[2]])) if not kinds.is_exception(term, row, c)]
        return sum((minus_log_sigmoid(-logit(term, row, c)) for c in columns), torch.zeros(()).double())

    total = torch.zeros((), dtype=vectors["q"].dtype)
    for q in range(kinds.num_queries)[batch.rows]:
        documents = kinds.positives(q)
        for d in documents:
            total = total + minus_log_sigmoid(logit("q2d", q, d)) / len(documents)
            total = total + sum(negatives(term, d) for term in terms if term[0] == "d") / len(documents)
        total = total + sum(negatives(term, q) for term in terms if term[0] == "q")
    return total / kinds.num_queries
