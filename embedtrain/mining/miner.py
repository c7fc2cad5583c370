"""The miner: from the rows of a source and a model to hard negatives. One implementation, before, during and without training.

    encode    corpus and queries into a store on disk, each text once            vectors.py
    search    the nearest documents of each query                                search/
    exclude   what is known to answer it, and copies of that                     exclusion.py
    rescore   by a stronger model, where one is asked                            rescorers/
    filter    candidates that look like answers; queries not worth training on   filters/
    draw      K of those left; what happens to short rows                        draw.py, short_rows.py

Queries are divided among ranks, and everything a query gets is a function of the texts, the model and the seed: the number of
ranks changes nothing, and the order of the rows decides between documents of equal scores alone.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.data.sources import Source
from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError
from embedtrain.export.load import load_encoder
from embedtrain.mining.corpus import Corpus, read_corpus
from embedtrain.mining.data import mining_data
from embedtrain.mining.draw import draw_negatives
from embedtrain.mining.exclusion import candidates_of
from embedtrain.mining.filters.rank_range import RankRange
from embedtrain.mining.near_duplicates import Copies
from embedtrain.mining.pairs import kept_pairs, positives_of
from embedtrain.mining.ranks import own_queries
from embedtrain.mining.records import (
    NO_DOCUMENT,
    Candidates,
    Filter,
    Found,
    Mined,
    MiningData,
    QueryFilter,
    Rescorer,
    Search,
    SearchRequest,
)
from embedtrain.mining.search.exact import Exact
from embedtrain.mining.search.files import scratch
from embedtrain.mining.short_rows import settle_short_rows
from embedtrain.mining.vectors import Embedded, Precision, embed, in_precision

log = logging.getLogger("embedtrain")

# Queries whose candidates are looked at together: 2048 x 100 candidates are some 4 MB.
QUERIES_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class MinedSource:
    """What mining one source gave; the same on all ranks."""

    data: MiningData
    mined: Mined  # of all queries
    scored_by: str  # whose scores they are
    is_rescored: bool  # a rescorer gave them, and not the search
    facts: dict[str, Any]  # of the whole: model, store, texts encoded, seconds of each part


class Miner:
    """Hard negatives for the rows of a source, from the texts of that source or a corpus of its own.

    num_negatives    K, negatives per query at most
    depth            M, candidates looked at per query, after what is known to answer it was taken out
    search           finds candidates (group `search`); null: exact
    model            whose embeddings are searched: a folder, a run directory, package://<package>/<folder>, a name on the
                     hub; null: the run's own encoder
    corpus           where negatives come from: a .jsonl, .txt or .parquet of documents, or a BEIR folder; null: all
                     positives and negatives of the source's rows
    rescorer         a stronger model (group `rescorer`) whose scores take the place of the search's; null: none
    near_duplicates  a candidate is a copy of a positive from this Jaccard similarity of their word triples on; null: only when
                     letters and digits are equal
    filters          which candidates may be negatives, by name (group `filter`); they act in their order
    query_filters    which queries are worth training on, by name (group `filter`)
    draw             top: the best that are left; uniform: any of them; softmax: in proportion to exp(score / temperature)
    temperature      of softmax, in units of the score
    short_rows       keep: fewer negatives; drop: the row is left out; random: filled up with random documents, marked as such
    own_negatives    of rows that have some: replace them, or keep them in front of the mined ones
    store            folder of embeddings, found again by their content
    precision        of arithmetic while texts are embedded: bf16, several times as fast where the processor has it (similarities
                     right to about 1e-3); null: the encoder's own, which is that of the run it trains in, else full
    numbers          of the store: float32 | float16, half the size and similarities right to about 1e-3
    max_memory_gb    that a search may hold at a time, besides the store
    seed             of draws
    """

    def __init__(
        self,
        *,
        num_negatives: int = 8,
        depth: int = 100,
        search: Search | None = None,
        model: str | None = None,
        corpus: str | None = None,
        rescorer: Rescorer | None = None,
        near_duplicates: float | None = 0.8,
        filters: Mapping[str, Filter] | None = None,
        query_filters: Mapping[str, QueryFilter] | None = None,
        draw: Literal["top", "uniform", "softmax"] = "top",
        temperature: float = 0.05,
        short_rows: Literal["keep", "drop", "random"] = "keep",
        own_negatives: Literal["replace", "keep"] = "replace",
        store: str = "runs/embeddings",
        precision: Precision | None = None,
        numbers: Literal["float32", "float16"] = "float32",
        max_memory_gb: float = 2.0,
        seed: int = 0,
    ) -> None:
        if num_negatives < 1:
            raise ConfigError(f"miner.num_negatives={num_negatives}: expected at least 1.")
        if depth < num_negatives:
            raise ConfigError(
                f"miner.depth={depth}: expected at least num_negatives={num_negatives}, of which they are drawn."
            )
        if near_duplicates is not None and not 0 < near_duplicates <= 1:
            raise ConfigError(f"miner.near_duplicates={near_duplicates}: expected a share above 0, up to 1, or null.")
        if draw == "softmax" and not temperature > 0:
            raise ConfigError(f"miner.temperature={temperature}: expected a number above 0.")
        if not max_memory_gb > 0:
            raise ConfigError(f"miner.max_memory_gb={max_memory_gb}: expected a number above 0.")
        _refuse_misplaced(filters or {}, query_filters or {})
        self.num_negatives = num_negatives
        self.depth = depth
        self.search: Search = search if search is not None else Exact()
        self.model = model
        self.corpus = corpus
        self.rescorer = rescorer
        self.near_duplicates = near_duplicates
        self.filters = {name: part for name, part in (filters or {}).items() if part is not None}
        self.query_filters = {name: part for name, part in (query_filters or {}).items() if part is not None}
        self.draw = draw
        self.temperature = temperature
        self.short_rows = short_rows
        self.own_negatives = own_negatives
        self.store = Path(store).expanduser()
        self.precision = precision
        self.numbers = numbers
        self.max_memory_gb = max_memory_gb
        self.seed = seed
        self._corpus: Corpus | None = None
        self._encoder: Encoder | None = None

    def mine(self, source: Source, name: str, encoder: Encoder | None, *, store: Path | None = None) -> MinedSource:
        """The negatives of every query of `source`, whose name in the mixture is `name`. Every rank calls it.

        `encoder`: whose embeddings are searched, where `model` is null. `store`: of embeddings, in place of the miner's own.

        Raises DataError for texts that cannot be mined, ConfigError for a model or settings that do not fit.
        """
        started = time.perf_counter()
        data = mining_data(source, name, corpus=self._read_corpus())
        log.info(f"mining {name}: {len(data.queries):,} queries, {data.num_searched:,} documents")
        embedded: Embedded | None = None
        if self.search.reads_vectors:
            with in_precision(self._searching(encoder), self.precision) as searching:
                embedded = embed(searching, data, root=store or self.store, numbers=self.numbers, show_progress=True)
        searched = time.perf_counter()
        with scratch(store or self.store) as folder:
            request = SearchRequest(
                data=data,
                queries=embedded.queries if embedded else None,
                documents=embedded.documents if embedded else None,
                device=distributed.device(),
                max_memory=round(self.max_memory_gb * 2**30),
                folder=folder,
            )
            found = self.search.top(request, self._depth_of_search(data))
            chosen = time.perf_counter()
            mined = self._choose(request, found)
        mined = Mined.cat(distributed.gather_objects(mined))
        ended = time.perf_counter()
        facts = {
            "model": self._model_name(encoder),
            **(embedded.facts() if embedded else {}),
            "search": self.search.facts(),
            **({"rescorer": self.rescorer.facts()} if self.rescorer else {}),
            **{f"filter {name}": facts for name, facts in self._facts_of_filters().items()},
            "short_rows": mined.short_rows,
            "search_seconds": chosen - searched,
            "choice_seconds": ended - chosen,
            "seconds": ended - started,
        }
        _say(data, mined, facts)
        return MinedSource(data, mined, self._scored_by(encoder), self.rescorer is not None, facts)

    # ------------------------------------------------------------------------------------------------------- choice

    def _choose(self, request: SearchRequest, found: Found) -> Mined:
        """The negatives of this rank's queries."""
        data = request.data
        copies = Copies(data.documents, self.near_duplicates)
        dropped: Counter[str] = Counter()
        dropped_queries: Counter[str] = Counter()
        short_rows: Counter[str] = Counter()
        blocks = self._blocks(request, found, copies, dropped)
        # A rescorer, and a filter that asks one, are called once with all pairs of a rank; else blocks pass one by one.
        at_once = self.rescorer is not None or any(hasattr(part, "prepare") for part in self.filters.values())
        parts = [_nothing(self.num_negatives)]
        for together in [list(blocks)] if at_once else ([block] for block in blocks):
            self._rescore(data, together, dropped)
            self._filter(data, together, self.filters, dropped)
            parts += [self._draw(block, copies, dropped_queries, short_rows) for block in together]
        return replace(
            Mined.cat(parts), dropped=dict(dropped), dropped_queries=dict(dropped_queries), short_rows=dict(short_rows)
        )

    def _blocks(
        self, request: SearchRequest, found: Found, copies: Copies, dropped: Counter[str]
    ) -> Iterator[Candidates]:
        """Candidates of this rank's queries, some at a time."""
        own = own_queries(len(request.data.queries))
        shown = None if distributed.is_main() else True
        with tqdm(total=len(own), desc="choose", unit="query", disable=shown) as progress:
            for start in range(0, len(own), QUERIES_AT_ONCE):
                part = slice(start, min(start + QUERIES_AT_ONCE, len(own)))
                queries = np.arange(own[part].start, own[part].stop, dtype=np.int64)
                candidates, counts = candidates_of(
                    request.data,
                    queries,
                    Found(found.documents[part], found.scores[part]),
                    *self._positive_scores(request.data, queries),
                    self.depth,
                    copies,
                )
                dropped.update(counts)
                yield candidates
                progress.update(queries.size)

    def _positive_scores(self, data: MiningData, queries: Ints) -> tuple[Tensor, Tensor]:
        """The search's scores of the positives of these queries, and where those of each begin."""
        owner, positives = positives_of(data, queries)
        offsets = torch.zeros(queries.size + 1, dtype=torch.int64)
        torch.cumsum(torch.from_numpy(np.bincount(owner, minlength=queries.size)), 0, out=offsets[1:])
        return self.search.score_pairs(queries[owner], positives), offsets

    def _rescore(self, data: MiningData, blocks: Sequence[Candidates], dropped: Counter[str]) -> None:
        """The rescorer's scores in place of the search's, of what windows of ranks leave. In place."""
        if self.rescorer is None:
            return
        windows = {name: part for name, part in self.filters.items() if isinstance(part, RankRange)}
        self._filter(data, blocks, windows, dropped)
        pairs = [kept_pairs(block) for block in blocks]
        none = np.empty(0, dtype=np.int64)
        queries, documents = (np.concatenate([none, *(pair[side] for pair in pairs)]) for side in (0, 1))
        scores = self.rescorer.score(data, queries, documents)
        for block, own in zip(blocks, scores.split([pair[0].size for pair in pairs]), strict=True):
            count = int(block.kept.sum())
            block.scores = torch.full_like(block.scores, torch.nan).masked_scatter_(block.kept, own[:count])
            block.positive_scores = own[count:]

    def _filter(
        self, data: MiningData, blocks: Sequence[Candidates], filters: Mapping[str, Filter], dropped: Counter[str]
    ) -> None:
        """Narrows `kept` of all blocks, in place."""
        for name, part in filters.items():
            if hasattr(part, "prepare"):
                part.prepare(data, blocks)
            for block in blocks:
                stays = part(block)
                dropped[name] += int((block.kept & ~stays).sum())
                block.kept = block.kept & stays

    def _draw(
        self, candidates: Candidates, copies: Copies, dropped_queries: Counter[str], short_rows: Counter[str]
    ) -> Mined:
        """The negatives of a block, after query filters and the policy for short rows."""
        wanted = np.ones(candidates.queries.size, dtype=np.bool_)
        for name, part in self.query_filters.items():
            stays = part(candidates).numpy()
            dropped_queries[name] += int((wanted & ~stays).sum())
            wanted &= stays
        drawn = draw_negatives(candidates, self.num_negatives, self.draw, self.temperature, self.seed)
        settled = settle_short_rows(drawn, candidates, self.short_rows, copies, self.seed, wanted)
        dropped_queries["short_rows"] += int((wanted & ~settled.stays).sum())
        short_rows.update(settled.counts)
        return Mined(
            *settled.drawn,
            positive_scores=candidates.positive_scores.float().numpy(),
            kept_queries=wanted & settled.stays,
        )

    # -------------------------------------------------------------------------------------------------------- parts

    def _depth_of_search(self, data: MiningData) -> int:
        """So many that `depth` are left when the positives of any query, a copy of each, and the query itself are gone."""
        most = int(np.diff(data.positive_offsets).max(initial=0))
        return min(data.num_searched, self.depth + 2 * most + 1)

    def _searching(self, encoder: Encoder | None) -> Encoder:
        """Whose embeddings are searched."""
        if self.model is None:
            if encoder is None:
                raise ConfigError("miner.model: null, and there is no encoder to search by. Name a model.")
            return encoder
        if self._encoder is None:
            self._encoder = load_encoder(self.model).requires_grad_(False).eval().to(distributed.device())
        return self._encoder

    def _read_corpus(self) -> Corpus | None:
        if self.corpus is not None and self._corpus is None:
            self._corpus = read_corpus(self.corpus)
        return self._corpus

    def _facts_of_filters(self) -> dict[str, Any]:
        """By name, of those that have some to tell. Each rank counts its own queries."""
        parts = {**self.filters, **self.query_filters}
        own = {name: part.facts() for name, part in parts.items() if hasattr(part, "facts")}
        return _added(distributed.gather_objects(own))

    def _model_name(self, encoder: Encoder | None) -> str | None:
        """Whose embeddings are searched; None where the search reads none."""
        if not self.search.reads_vectors:
            return None
        return self.model or str(getattr(self._searching(encoder).backbone, "name", "the encoder"))

    def _scored_by(self, encoder: Encoder | None) -> str:
        if self.rescorer is not None:
            return self.rescorer.name
        return self._model_name(encoder) or str(self.search.facts().get("kind", type(self.search).__name__))


def _refuse_misplaced(filters: Mapping[str, Any], query_filters: Mapping[str, Any]) -> None:
    """A filter of candidates and one of queries look alike in a config."""
    for name, part in filters.items():
        if getattr(part, "of_queries", False):
            raise ConfigError(
                f"miner.filters.{name}: {type(part).__name__} says which queries stay. Put it under miner.query_filters."
            )
    for name, part in query_filters.items():
        if part is not None and not getattr(part, "of_queries", False):
            raise ConfigError(
                f"miner.query_filters.{name}: {type(part).__name__} says which candidates stay. Put it under miner.filters."
            )


def _nothing(width: int) -> Mined:
    """Of no query."""
    return Mined(
        documents=np.empty((0, width), dtype=np.int64),
        scores=np.empty((0, width), dtype=np.float32),
        ranks=np.empty((0, width), dtype=np.int64),
        reasons=np.empty((0, width), dtype=np.uint8),
        positive_scores=np.empty(0, dtype=np.float32),
        kept_queries=np.empty(0, dtype=np.bool_),
    )


def _added(parts: Sequence[Any]) -> Any:
    """Facts of all ranks as one: whole numbers are added up, the rest is the same everywhere."""
    first = parts[0]
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _added([part[name] for part in parts if name in part]) for name in names}
    if isinstance(first, int) and not isinstance(first, bool):
        return sum(parts)
    return first


def _say(data: MiningData, mined: Mined, facts: Mapping[str, Any]) -> None:
    """What was found, for the log, and what must not pass in silence."""
    kept = mined.documents[mined.kept_queries]
    said = f"mined {data.source}: {int((kept != NO_DOCUMENT).sum()):,} negatives for {len(kept):,} queries"
    if "encoded" in facts:
        said += f"; {facts['encoded']:,} texts embedded and {facts['there']:,} taken from the store"
    log.info(f"{said}; {facts['seconds']:.1f} s")
    if facts.get("zero_vectors"):
        log.warning(
            f"{data.source}: {facts['zero_vectors']:,} texts have the vector 0, which is as similar to one text as to any other. "
            "Look for empty texts and a broken model; miner.query_filters can drop such queries (minimum_positive)."
        )
