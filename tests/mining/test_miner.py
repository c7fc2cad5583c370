"""The whole miner against a loop over all pairs: search, exclusion, rescorer, filters, draw."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedtrain import distributed
from embedtrain.data.prompts import Prompts
from embedtrain.errors import ConfigError, DataError
from embedtrain.mining import miner as module
from embedtrain.mining.data import mining_data
from embedtrain.mining.filters.consistency import Consistency
from embedtrain.mining.filters.margin_to_positive import MarginToPositive
from embedtrain.mining.filters.percent_of_positive import PercentOfPositive
from embedtrain.mining.filters.rank_range import RankRange
from embedtrain.mining.filters.score_range import ScoreRange
from embedtrain.mining.miner import MinedSource, Miner
from embedtrain.mining.records import NO_DOCUMENT, REASONS, Candidates, MiningData
from embedtrain.mining.search.bm25 import BM25
from embedtrain.types import TrainingExample, text_id
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks
from tests.mining.encoders import encoder_of
from tests.mining.rescorers.folders import WORDS
from tests.mining.rows import Rows, row
from tests.mining.slow import Rules, product, slowly_mined, why_not

LENGTHS = (32, 96)
Found = dict[str, list[tuple[str, float, int]] | None]


def some_rows(seed: int = 0) -> list[TrainingExample]:
    """Queries that several rows ask, with other positives; copies and near-duplicates of positives, and of queries, among
    the documents of others."""
    generator = np.random.default_rng(seed)

    def text(length: int) -> str:
        return " ".join([*generator.choice(WORDS, length), str(generator.integers(10**6))])

    positives = [text(int(generator.integers(3, 8))) for _ in range(50)] + [text(40) for _ in range(6)]
    queries = [text(int(generator.integers(2, 6))) for _ in range(26)]
    near = [" ".join(w if i != 20 else "changed" for i, w in enumerate(p.split())) for p in positives[50:]]
    copies = [f"{p.upper()} !" for p in positives[:6]]
    others = [text(int(generator.integers(3, 12))) for _ in range(60)]
    asked = [f"{query.capitalize()}?" for query in queries[:3]]
    negatives = [*near, *copies, *others, *asked]
    rows = []
    for number, query in enumerate([*queries, *queries[:6]]):
        chosen = generator.choice(len(positives), int(generator.integers(1, 4)), replace=False)
        own = generator.choice(len(negatives), 4, replace=False)
        named = (*(positives[i] for i in chosen), *(positives[50 + number : 51 + number]))
        rows.append(row(query, *dict.fromkeys(named), negatives=[negatives[i] for i in own], row=f"rows:{number}"))
    return [*rows, row(queries[0], positives[0], negatives=negatives)]


class Reversed:
    """A rescorer with an opinion of its own: logits between -10 and 0, by the texts."""

    name = "reversed"

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    @staticmethod
    def of(query: str, document: str) -> float:
        return -(text_id(f"{query}/{document}") % 10**6) / 10**5

    def score(self, data: MiningData, queries: np.ndarray, documents: np.ndarray) -> Tensor:
        self.asked += zip(queries.tolist(), documents.tolist(), strict=True)
        pairs = zip(queries.tolist(), documents.tolist(), strict=True)
        return torch.tensor([self.of(data.queries[q], data.documents[d]) for q, d in pairs], dtype=torch.float32)

    def facts(self) -> dict[str, object]:
        return {"kind": "reversed"}


# Settings of the miner, and the same for the loop.
CASES: dict[str, tuple[dict[str, Any], Rules]] = {
    "as they come": ({}, Rules()),
    "equal words alone": ({"near_duplicates": None}, Rules(near_duplicates=None)),
    "one document": ({"num_negatives": 1, "depth": 1}, Rules(num_negatives=1, depth=1)),
    "more than there are": ({"num_negatives": 300, "depth": 300}, Rules(num_negatives=300, depth=300)),
    "share": ({"depth": 90, "filters": {"share": PercentOfPositive(share=0.99)}}, Rules(depth=90, share=0.99)),
    "margin": ({"depth": 60, "filters": {"margin": MarginToPositive(margin=-0.02)}}, Rules(depth=60, margin=-0.02)),
    "highest": ({"filters": {"highest": ScoreRange(highest=0.97)}}, Rules(highest=0.97)),
    "ranks": ({"filters": {"ranks": RankRange(first=4, last=9)}}, Rules(first=4, last=9)),
    "one after the other": (
        {"depth": 90, "filters": {"ranks": RankRange(first=60), "share": PercentOfPositive(share=0.99)}},
        Rules(depth=90, first=60, share=0.99),
    ),
    "consistent": ({"query_filters": {"consistent": Consistency(top=3)}}, Rules(consistent=3)),
    "rescored": ({"rescorer": Reversed()}, Rules(rescore=Reversed.of)),
    "rescored and filtered": (
        {
            "rescorer": Reversed(),
            "filters": {"ranks": RankRange(first=2, last=15), "share": PercentOfPositive(share=0.9)},
            "query_filters": {"consistent": Consistency(top=8)},
        },
        Rules(rescore=Reversed.of, first=2, last=15, share=0.9, consistent=8),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_model_dir("bert", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Of all tests that do not look at it."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def score(folder):
    encoder = encoder_of(folder, lengths=LENGTHS)
    data = mining_data(Rows(some_rows()), "s")
    vectors = {}
    for role, texts in (("query", data.queries), ("document", data.documents)):
        for text in texts:  # one by one
            vectors[role, text] = encoder.encode([text], role=role, source="s")[0].numpy()
    return product(vectors)


def miner(store: Path, **settings: Any) -> Miner:
    return Miner(**{"num_negatives": 4, "depth": 20, "store": str(store), **settings})


def by_query(found: MinedSource) -> Found:
    data, mined = found.data, found.mined
    result: Found = {}
    for number, query in enumerate(data.queries):
        there = [k for k, d in enumerate(mined.documents[number].tolist()) if d != NO_DOCUMENT]
        assert there == list(range(len(there))), "a row has a hole"
        result[query] = [
            (data.documents[mined.documents[number, k]], float(mined.scores[number, k]), int(mined.ranks[number, k]))
            for k in there
        ]
        if not mined.kept_queries[number]:
            result[query] = None
    return result


def mined(folder: str, store: Path, rows: Sequence[TrainingExample], **settings: Any) -> MinedSource:
    return miner(store, **settings).mine(Rows(rows), "s", encoder_of(folder, lengths=LENGTHS))


def assert_equal(found: Found, expected: Found) -> None:
    """The same documents at the same ranks in the same order; scores up to the rounding of an encoder's batches."""
    assert found.keys() == expected.keys()
    for query, own in expected.items():
        theirs = found[query]
        assert (theirs is None) == (own is None), query
        if own is not None and theirs is not None:
            assert [(d, r) for d, _, r in theirs] == [(d, r) for d, _, r in own], query
            assert [s for _, s, _ in theirs] == pytest.approx([s for _, s, _ in own], abs=2e-6)


@pytest.mark.parametrize("cap", [2.0, 3e-4])
@pytest.mark.parametrize("name", CASES)
def test_it_finds_what_a_loop_over_all_pairs_finds(name, cap, folder, store, score, monkeypatch):
    settings, rules = CASES[name]
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 7)
    if name == "more than there are" and cap < 1:
        cap = 2e-3
    found = mined(folder, store, some_rows(), max_memory_gb=cap, **settings)
    slow = slowly_mined(some_rows(), score, rules)
    assert_equal(by_query(found), slow.top(rules.num_negatives))
    counted = {what: count for what, count in found.mined.dropped.items() if count}
    assert counted == dict(slow.dropped)
    assert found.mined.dropped_queries.get("consistent", 0) == sum(own is None for own in slow.allowed.values())
    # A case in which a filter takes nothing, or all, would say little.
    assert all(counted.get(part) for part in settings.get("filters", ()))
    assert any(slow.allowed.values())
    if name == "as they come":  # or this test would say nothing of them
        reasons = ("positive", "the query itself", "copy of a positive", "near-duplicate of a positive")
        assert all(counted[reason] for reason in reasons)


def on_a_rank(folder: str, store: str, name: str, settings: dict[str, Any]) -> tuple[Found, dict[str, int], int]:
    module.QUERIES_AT_ONCE = 7
    found = mined(folder, Path(store), some_rows(), **{**CASES[name][0], **settings})
    return by_query(found), found.mined.dropped, found.facts["encoded"]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", ["as they come", "share", "rescored and filtered"])
def test_ranks_find_what_a_loop_over_all_pairs_finds(name, world, folder, tmp_path, score):
    """Also where they embed the texts themselves, each a part."""
    _, rules = CASES[name]
    answers = run_ranks(on_a_rank, world, folder, str(tmp_path), name, {"max_memory_gb": 1e-3})
    slow = slowly_mined(some_rows(), score, rules)
    for found, dropped, _ in answers:
        assert_equal(found, slow.top(rules.num_negatives))
        assert {what: count for what, count in dropped.items() if count} == dict(slow.dropped)
    assert answers[0][2] > 0


@pytest.mark.parametrize("draw", ["top", "uniform", "softmax"])
def test_ranks_and_the_order_of_rows_change_no_draw(draw, folder, store):
    settings = {"draw": draw, "temperature": 0.2, "seed": 3}
    expected = by_query(mined(folder, store, some_rows(), **settings))
    shuffled = [some_rows()[i] for i in np.random.default_rng(0).permutation(len(some_rows()))]
    assert by_query(mined(folder, store, shuffled, **settings)) == expected
    for found, _, encoded in run_ranks(on_a_rank, 2, folder, str(store), "as they come", settings):
        assert found == expected
        assert encoded == 0
    if draw != "top":
        assert by_query(mined(folder, store, some_rows(), **{**settings, "seed": 4})) != expected


@pytest.mark.parametrize("draw", ["uniform", "softmax"])
def test_a_draw_is_of_what_the_loop_allows(draw, folder, store, score):
    settings, rules = CASES["share"]
    found = mined(folder, store, some_rows(), draw=draw, **settings)
    allowed = slowly_mined(some_rows(), score, rules).allowed
    for query, drawn in by_query(found).items():
        places = {(document, rank) for document, _, rank in allowed[query] or []}
        assert len(drawn or []) == min(4, len(places))
        assert {(document, rank) for document, _, rank in drawn or []} <= places
    assert set(np.unique(found.mined.reasons)) == {REASONS.index("none"), REASONS.index(draw)}


def test_a_corpus_is_searched_and_positives_that_it_lacks_are_scored_alone(folder, store, score, tmp_path):
    rows = some_rows()
    corpus = [t for t in mining_data(Rows(rows), "s").documents if text_id(t) % 3]
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(corpus) + "\n", encoding="utf-8")
    found = mined(folder, store, rows, corpus=str(path), filters={"margin": MarginToPositive(margin=-0.02)})
    assert found.data.num_missing > 5
    assert_equal(by_query(found), slowly_mined(rows, score, Rules(margin=-0.02), corpus).top(4))
    data = found.data
    owner = np.repeat(np.arange(len(data.queries)), np.diff(data.positive_offsets))
    wanted = [score(data.queries[q], data.documents[d]) for q, d in zip(owner, data.positives, strict=True)]
    assert found.mined.positive_scores == pytest.approx(np.array(wanted), abs=2e-6)


def test_a_rescorer_is_asked_once_for_what_windows_leave_and_for_all_positives(folder, store):
    rescorer = Reversed()
    found = mined(folder, store, some_rows(), rescorer=rescorer, filters={"w": RankRange(first=2, last=6)})
    pairs = [(q, d) for q in range(len(found.data.queries)) for d in found.data.positives_of(q).tolist()]
    assert rescorer.asked[-len(pairs) :] == pairs
    assert len(rescorer.asked) == len(set(rescorer.asked)) == len(pairs) + 5 * len(found.data.queries)
    assert found.is_rescored
    assert found.scored_by == "reversed"
    assert found.facts["rescorer"] == {"kind": "reversed"}


def test_short_rows_stay_short_go_or_are_filled_and_say_so(folder, store, score):
    strict = {"filters": {"margin": MarginToPositive(margin=-0.02)}, "num_negatives": 6, "depth": 60}
    slow = slowly_mined(some_rows(), score, Rules(depth=60, margin=-0.02)).top(6)
    short = {query for query, own in slow.items() if len(own or []) < 6}
    assert 3 < len(short) < len(slow)  # of both kinds

    kept = mined(folder, store, some_rows(), short_rows="keep", **strict)
    assert_equal(by_query(kept), slow)
    assert kept.facts["short_rows"]["short rows"] == len(short)

    dropped = mined(folder, store, some_rows(), short_rows="drop", **strict)
    assert_equal(by_query(dropped), {query: None if query in short else own for query, own in slow.items()})
    assert dropped.mined.dropped_queries["short_rows"] == len(short)

    filled = mined(folder, store, some_rows(), short_rows="random", **strict)
    data = filled.data
    for number, (query, own) in enumerate(by_query(filled).items()):
        own = own or []
        assert_equal({query: own[: len(slow[query] or [])]}, {query: slow[query]})
        positives = [data.documents[d] for d in data.positives_of(number)]
        for document, value, rank in own[len(slow[query] or []) :]:
            assert math.isnan(value)
            assert rank == 0
            assert why_not(query, document, positives, 0.8) is None
        reasons = filled.mined.reasons[number, : len(own)].tolist()
        assert [REASONS[r] for r in reasons] == ["top"] * len(slow[query] or []) + ["random"] * (
            len(own) - len(slow[query] or [])
        )
    assert filled.facts["short_rows"]["filled at random"] == int(
        (filled.mined.reasons == REASONS.index("random")).sum()
    )


def test_what_a_window_refused_does_not_come_back_as_a_random_document(folder, store):
    """With a rescorer too, which is not even asked about it."""
    rows = [row("red cat 1", "small red cat 2", negatives=[f"{word} thing" for word in WORDS])]
    window = {"first": RankRange(first=8)}
    found = mined(
        folder, store, rows, num_negatives=20, filters=window, rescorer=Reversed(), short_rows="random", depth=20
    )
    nearest = by_query(mined(folder, store, rows, num_negatives=7))["red cat 1"]
    assert not {d for d, _, _ in nearest or []} & {d for d, _, _ in by_query(found)["red cat 1"] or []}
    assert found.mined.dropped["first"] == 7


def test_a_query_without_candidates_is_counted_and_filled_with_nothing(folder, store):
    """All documents answer it: no positive, no placeholder and no -inf is put in their place."""
    rows = [row("red cat 1", "small cat 2", "Small CAT 2!"), row("red cat 1", "old bird 3")]
    for policy in ("keep", "random"):
        found = mined(folder, store, rows, short_rows=policy)
        assert (found.mined.documents == NO_DOCUMENT).all()
        assert np.isnan(found.mined.scores).all()
        assert found.facts["short_rows"]["rows without a negative"] == 1
        assert found.facts["short_rows"]["negatives missing"] == 4


class Counting:
    """A filter with something to tell, of its own rank's queries."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, candidates: Candidates) -> Tensor:
        self.seen += len(candidates.queries)
        return torch.ones_like(candidates.kept)

    def facts(self) -> dict[str, object]:
        return {"model": "m", "dry": True, "queries": self.seen, "of": {f"rank {distributed.rank()}": self.seen}}


def counted_on_a_rank(folder: str, store: str) -> Any:
    return mined(folder, Path(store), some_rows(), filters={"counting": Counting()}).facts["filter counting"]


def test_what_filters_tell_is_of_all_ranks(folder, store):
    told = run_ranks(counted_on_a_rank, 2, folder, str(store))
    assert told[0] == told[1]
    assert told[0] == {"model": "m", "dry": True, "queries": 26, "of": {"rank 0": 13, "rank 1": 13}}


def test_scores_that_are_no_numbers_are_refused_by_their_texts(folder, store):
    class Broken(Reversed):
        def score(self, data, queries, documents):
            return super().score(data, queries, documents) * math.nan

    with pytest.raises(DataError, match=r"s: the score of a candidate is nan: query '.*', document '"):
        mined(folder, store, some_rows(), rescorer=Broken())


def test_texts_of_vector_zero_are_counted_and_said(folder, tmp_path, caplog):
    encoder = encoder_of(folder, lengths=LENGTHS)
    encode = encoder.encode

    def without(texts, **options):
        vectors = encode(texts, **options)
        vectors[[i for i, text in enumerate(texts) if text.startswith("red")]] = 0
        return vectors

    encoder.encode = without
    rows = some_rows()
    zero = {(role, t) for r in rows for role, ts in (("q", [r.query]), ("d", [*r.positives, *r.negatives])) for t in ts}
    expected = sum(text.startswith("red") for _, text in zero)
    with caplog.at_level(logging.WARNING, logger="embedtrain"):
        found = miner(tmp_path).mine(Rows(rows), "s", encoder)
    assert found.facts["zero_vectors"] == expected > 0
    assert f"s: {expected} texts have the vector 0" in caplog.text


def test_words_in_common_need_no_encoder(tmp_path):
    rows = [row("red cat", "the red cat sat"), row("blue dog", "a blue dog barks", negatives=["a red dog", "nothing"])]
    found = Miner(num_negatives=2, search=BM25(), store=str(tmp_path)).mine(Rows(rows), "s", None)
    assert found.scored_by == "bm25"
    assert [d for d, _, _ in by_query(found)["blue dog"] or []] == ["a red dog"]
    assert not list(tmp_path.iterdir()), "the index is gone"


def test_an_index_is_gone_after_an_error_too(folder, tmp_path):
    class Fails(Reversed):
        def score(self, data, queries, documents):
            raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        mined(folder, tmp_path, some_rows(), rescorer=Fails())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("index-")] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_negatives": 0}, "miner.num_negatives=0: expected at least 1"),
        ({"depth": 3}, "miner.depth=3: expected at least num_negatives=4"),
        ({"near_duplicates": 0.0}, r"miner.near_duplicates=0.0: expected a share above 0"),
        ({"draw": "softmax", "temperature": 0.0}, "miner.temperature=0.0: expected a number above 0"),
        ({"max_memory_gb": 0}, "miner.max_memory_gb=0: expected a number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        miner(tmp_path, **settings)


def test_a_search_by_vectors_needs_a_model(tmp_path):
    with pytest.raises(ConfigError, match=r"miner\.model: null, and there is no encoder to search by"):
        miner(tmp_path).mine(Rows(some_rows()), "s", None)


def test_the_model_of_the_miner_comes_before_the_runs(folder, tmp_path):
    """Another model than the run's own: found by its own vectors."""
    from tests.mining.rescorers.folders import embedding_model

    other = embedding_model(tmp_path / "other", seed=5)
    found = miner(tmp_path / "store", model=other).mine(Rows(some_rows()), "s", None)
    assert found.scored_by == other
    assert by_query(found) != by_query(mined(folder, tmp_path / "store", some_rows()))


def test_rows_of_two_instructions_are_two_queries(folder, store):
    rows = [replace(r, instruction=told) for told in ("find", "rank") for r in some_rows()[:5]]
    told = encoder_of(folder, lengths=LENGTHS, prompts=Prompts(query="{instruction}: "))
    found = miner(store).mine(Rows(rows), "s", told)
    assert len(found.data.queries) == 10
    for number in range(10):
        own = set(found.data.positives_of(number).tolist())
        assert not own & set(found.mined.documents[number].tolist())
