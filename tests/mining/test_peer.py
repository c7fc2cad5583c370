"""The same model, texts and rules as sentence-transformers' `mine_hard_negatives`: the same negatives."""

from __future__ import annotations

import csv
import gzip
import json
from typing import Any

import pytest

from embedtrain.export.load import load_encoder
from embedtrain.mining.filters.margin_to_positive import MarginToPositive
from embedtrain.mining.filters.percent_of_positive import PercentOfPositive
from embedtrain.mining.filters.rank_range import RankRange
from embedtrain.mining.filters.score_range import ScoreRange
from embedtrain.mining.miner import Miner
from embedtrain.mining.records import NO_DOCUMENT
from tests.data.helpers import SHARED
from tests.helpers.models import minilm_dir
from tests.mining.rows import Rows, row

FOLDER = SHARED / "ir-scifact"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs shared/data")
QUERIES, DOCUMENTS, NEGATIVES = 40, 300, 3


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[str]]:
    """Claims and the titles of the papers that answer them: some claims have several."""
    with gzip.open(FOLDER / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        titles = {document["_id"]: document["title"] for document in map(json.loads, lines)}
    with (FOLDER / "queries.jsonl").open(encoding="utf-8") as lines:
        claims = {query["_id"]: query["text"] for query in map(json.loads, lines)}
    answers: dict[str, list[str]] = {}
    with (FOLDER / "qrels" / "train.tsv").open(encoding="utf-8") as judged:
        for line in csv.DictReader(judged, delimiter="\t"):
            if int(line["score"]) > 0:
                answers.setdefault(claims[line["query-id"]], []).append(titles[line["corpus-id"]])
    return dict(sorted(answers.items(), key=lambda pair: -len(pair[1]))[:QUERIES])


@pytest.fixture(scope="module")
def corpus(pairs) -> list[str]:
    """Titles, those of the pairs among them; each once."""
    with gzip.open(FOLDER / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        some = [json.loads(line)["title"] for line, _ in zip(lines, range(DOCUMENTS), strict=False)]
    return list(dict.fromkeys([*some, *(title for titles in pairs.values() for title in titles)]))


@pytest.fixture(scope="module")
def theirs(pairs, corpus):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    model = SentenceTransformer(minilm_dir(), device="cpu")
    each = [(claim, title) for claim, titles in pairs.items() for title in titles]
    data = Dataset.from_dict({"anchor": [claim for claim, _ in each], "positive": [title for _, title in each]})

    def mined(**settings: Any) -> dict[str, list[tuple[str, float]]]:
        found = mine_hard_negatives(
            data, model, corpus=corpus, num_negatives=NEGATIVES, output_scores=True, verbose=False, **settings
        )
        by_claim: dict[str, dict[str, float]] = {}
        for line in found:  # a claim comes once for each of its titles
            by_claim.setdefault(line["anchor"], {})[line["negative"]] = line["scores"][-1]
        return {claim: list(negatives.items()) for claim, negatives in by_claim.items()}

    return mined


@pytest.mark.parametrize(
    ("settings", "filters"),
    [
        ({}, {}),
        ({"relative_margin": 0.05}, {"share": PercentOfPositive(share=0.95)}),
        ({"absolute_margin": 0.1}, {"margin": MarginToPositive(margin=0.1)}),
        ({"max_score": 0.5}, {"score": ScoreRange(highest=0.5)}),
        ({"range_min": 10}, {"shifted": RankRange(first=11)}),
    ],
    ids=["as they come", "relative_margin", "absolute_margin", "max_score", "range_min"],
)
def test_the_negatives_are_those_of_sentence_transformers(settings, filters, pairs, corpus, theirs, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    miner = Miner(
        num_negatives=NEGATIVES,
        depth=50,
        corpus=str(tmp_path / "corpus.txt"),
        near_duplicates=None,
        filters=filters,
        store=str(tmp_path / "store"),
    )
    rows = [row(claim, *titles) for claim, titles in pairs.items()]
    found = miner.mine(Rows(rows), "s", load_encoder(minilm_dir()))
    ours = {}
    for number, claim in enumerate(found.data.queries):
        documents = found.mined.documents[number]
        there = documents[documents != NO_DOCUMENT].tolist()
        if len(there) == NEGATIVES:  # it leaves out claims with fewer
            scores = found.mined.scores[number].tolist()
            ours[claim] = [(found.data.documents[d], score) for d, score in zip(there, scores, strict=True)]
    expected = {claim: own for claim, own in theirs(range_max=60, **settings).items() if len(own) == NEGATIVES}
    assert {claim: [text for text, _ in own] for claim, own in ours.items()} == {
        claim: [text for text, _ in own] for claim, own in expected.items()
    }
    assert len(ours) > QUERIES / 2
    for claim, own in ours.items():
        assert [score for _, score in own] == pytest.approx([score for _, score in expected[claim]], abs=1e-5)
