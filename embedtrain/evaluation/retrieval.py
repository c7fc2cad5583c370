"""Retrieval: encode queries and documents, search exactly, measure with ir_measures.

rank r encodes queries r, r + W, ...        -> all query embeddings on every rank
rank r encodes documents r, r + W, ...      chunk by chunk, searches each chunk, keeps the best k, drops the chunk
merge                                       -> the ranking that one process would have found
rank 0 measures and tells the others        -> the same result everywhere

"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import torch

from embedtrain.distributed import broadcast_object, is_main
from embedtrain.errors import ConfigError
from embedtrain.evaluation.beir import read_beir
from embedtrain.evaluation.encoding import (
    TextEncoder,
    encode,
    encode_shares,
    prompts_used,
    read_context,
    share_of_rank,
)
from embedtrain.evaluation.result import EvaluationResult, QueryExample
from embedtrain.evaluation.retrieval_data import RetrievalData, data_from_pairs
from embedtrain.evaluation.search import merge_over_ranks, top_k
from embedtrain.types import Embeddings, TrainingExample

# What a config may ask for. Cutoffs are ranks, from 1.
MEASURES = {
    "ndcg": ir_measures.nDCG,
    "mrr": ir_measures.RR,
    "recall": ir_measures.R,
    "precision": ir_measures.P,
    "map": ir_measures.AP,
    "accuracy": ir_measures.Success,  # at least one relevant document among the first k
}
METRICS = ("ndcg@10", "mrr@10", "recall@10", "recall@100")
EXAMPLE_CHARACTERS = 240
# Of the documents at hand: 1 GiB in fp32.
CHUNK_NUMBERS = 2**28


class RetrievalEvaluator:
    """Retrieval on a BEIR folder: the same result on every rank.

    Args:
        path: the folder, see `beir.py`.
        split: which `qrels/<split>.tsv`.
        metrics: `<measure>@<cutoff>`, the first is primary. Measures: ndcg, mrr, recall, precision, map, accuracy.
        source: the training source whose prompts the texts get; null: the common prompts.
        instruction: the task, where the prompt has a place for it.
        chunk_documents: documents encoded and searched at a time, per rank, at most: fewer where they would fill more than
            1 GiB. Changes memory, never the result.

    Texts are compared by inner product, token vectors by MaxSim.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        split: str = "test",
        metrics: Sequence[str] = METRICS,
        source: str | None = None,
        instruction: str | None = None,
        chunk_documents: int = 16384,
    ) -> None:
        self._set_up(read_beir(path, split), metrics, source, instruction, chunk_documents)

    def _set_up(
        self,
        data: RetrievalData,
        metrics: Sequence[str],
        source: str | None,
        instruction: str | None,
        chunk_documents: int,
    ) -> None:
        self.data = data
        self.measures = parse_metrics(metrics)
        self.source = source
        self.instruction = instruction
        self.chunk_documents = chunk_documents
        # Each text is encoded and searched once, whatever number of documents have it: their scores are then equal to the
        # bit on any number of ranks. Among equals the larger id comes first, as in trec_eval and so in published figures.
        self.ids_of: dict[str, list[str]] = {}
        for document in sorted(data.documents, reverse=True):
            self.ids_of.setdefault(data.documents[document], []).append(document)
        self.texts = list(self.ids_of)

    def __call__(self, encoder: TextEncoder, *, show_progress: bool = False) -> EvaluationResult:
        start = time.perf_counter()
        context = read_context(encoder, self.texts, self.source)
        ranking = self._search(encoder, show_progress)
        if not is_main():
            return broadcast_object(None)  # type: ignore[return-value]  # what rank 0 measured
        details = {"seconds": round(time.perf_counter() - start, 3), **prompts_used(encoder, self.source), **context}
        return broadcast_object(measure_ranking(self.data, ranking, self.measures, details))

    def _search(self, encoder: TextEncoder, show_progress: bool) -> dict[str, list[str]]:
        """The ids of the best documents of each query, best first."""
        data = self.data
        queries = self._encode_queries(encoder, show_progress)
        depth = max(measure["cutoff"] for measure in self.measures.values())
        k = depth + bool(data.own_documents)  # a query's own document is taken out afterwards
        mine = share_of_rank(len(self.texts))
        scores, indices = top_k(queries, self._document_chunks(encoder, mine, show_progress), k)
        mine_indices = torch.tensor(mine, dtype=torch.int64, device=indices.device)
        _, indices = merge_over_ranks(scores, mine_indices[indices], k)
        ranking = {}
        for query, found in zip(data.queries, indices.tolist(), strict=True):
            own = data.own_documents.get(query)
            documents = [document for i in found for document in self.ids_of[self.texts[i]] if document != own]
            ranking[query] = documents[:depth]
        return ranking

    def _encode_queries(self, encoder: TextEncoder, show_progress: bool) -> Embeddings:
        """All queries, on the device where the search runs."""
        instructions = [self.data.instructions.get(query, self.instruction) for query in self.data.queries]
        queries = encode_shares(
            encoder,
            list(self.data.queries.values()),
            role="query",
            source=self.source,
            instructions=instructions,
            show_progress=show_progress,
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return queries.map(lambda values: values.to(device))

    def _document_chunks(self, encoder: TextEncoder, mine: Sequence[int], show_progress: bool) -> Iterator[Embeddings]:
        """This rank's documents, some at a time: fewer where each has many numbers, as token vectors and sparse ones have."""
        size = min(self.chunk_documents, max(1, CHUNK_NUMBERS // getattr(encoder, "numbers_per_document", 1)))
        for start in range(0, len(mine), size):
            chunk = mine[start : start + size]
            yield encode(
                encoder,
                [self.texts[i] for i in chunk],
                role="document",
                source=self.source,
                instructions=[self.instruction] * len(chunk),
                show_progress=show_progress,
            )


class PairsEvaluator(RetrievalEvaluator):
    """Retrieval on rows of pairs: every query has to find its own positives among the documents of all rows.

    The more rows, the harder: compare the figures only with those of the same rows. `pairs` is a source of training
    examples; with `held_out: {share: ..., part: dev}` it gives the rows that the same source with `part: train` leaves out.

    Args:
        pairs: the rows.
        name: of the result.
        Others as `RetrievalEvaluator`.
    """

    def __init__(
        self,
        *,
        pairs: Iterable[TrainingExample],
        name: str = "held_out",
        metrics: Sequence[str] = METRICS,
        source: str | None = None,
        instruction: str | None = None,
        chunk_documents: int = 16384,
    ) -> None:
        self._set_up(data_from_pairs(pairs, name), metrics, source, instruction, chunk_documents)


def parse_metrics(names: Sequence[str]) -> dict[str, Any]:
    """`"ndcg@10"` -> the measure of ir_measures. Raises ConfigError for what is none."""
    measures = {}
    for name in names:
        family, _, cutoff = name.partition("@")
        if family not in MEASURES or not cutoff.isdigit() or int(cutoff) < 1:
            raise ConfigError(
                f"metrics: {name!r} is no retrieval metric. Expected <measure>@<cutoff>, such as ndcg@10, with a measure "
                f"of {', '.join(MEASURES)}."
            )
        measures[name] = MEASURES[family] @ int(cutoff)
    if not measures:
        raise ConfigError("metrics: expected at least one, such as ndcg@10; the first is the primary one.")
    return measures


def measure_ranking(
    data: RetrievalData, ranking: dict[str, list[str]], measures: dict[str, Any], details: dict[str, Any]
) -> EvaluationResult:
    """Figures of a ranking: query id -> document ids, best first."""
    # The library sorts by score and breaks ties its own way. The order was decided in the search, so it gets ranks.
    run = {query: {document: -float(i) for i, document in enumerate(found)} for query, found in ranking.items()}
    per_query: dict[str, dict[str, float]] = {name: {} for name in measures}
    names = {measure: name for name, measure in measures.items()}
    for value in ir_measures.iter_calc(list(measures.values()), data.judgements, run):
        per_query[names[value.measure]][value.query_id] = value.value
    return EvaluationResult(
        name=data.name,
        metrics={name: math.fsum(values.values()) / len(values) for name, values in per_query.items()},
        primary=next(iter(measures)),
        per_query={name: {query: values[query] for query in data.queries} for name, values in per_query.items()},
        examples={query: _example(data, query, found) for query, found in ranking.items()},
        details={
            "num_queries": len(data.queries),
            "num_documents": len(data.documents),
            "num_unjudged_queries": data.num_unjudged,
            **details,
        },
    )


def _example(data: RetrievalData, query: str, found: list[str]) -> QueryExample:
    relevant = [document for document, grade in data.judgements[query].items() if grade > 0]
    ranks = [rank for rank, document in enumerate(found, start=1) if document in relevant]
    best = found[ranks[0] - 1] if ranks else relevant[0]
    return QueryExample(
        query=_cut(data.queries[query]),
        relevant=_cut(data.documents[best]),
        found=_cut(data.documents[found[0]]),
        rank=ranks[0] if ranks else None,
    )


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1].rstrip() + "…"
