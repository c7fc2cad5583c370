"""Pairs that people graded: as rows, on a scale of 0 to 1, and what contrastive losses beside them see."""

import pytest
import torch

from embedtrain.data.collate import collate
from embedtrain.data.mixture import Mixture
from embedtrain.data.prompts import Prompts
from embedtrain.data.sources import Csv, JsonLines, PairsFile
from embedtrain.data.tokenizer import TextTokenizer
from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.relation import RelationReader
from embedtrain.types import Relation, TrainingExample, text_id
from tests.data.helpers import SHARED, Rows, minilm, write_jsonl

COLUMNS = {"query": "sentence1", "positives": "sentence2", "scores": "score"}
PAIRS = [("a man sings", "a man is singing", 5.0), ("a man sings", "a dog sleeps", 0.0), ("rain", "snow", 2.5)]


def test_every_format_gives_graded_pairs_on_one_scale(tmp_path):
    rows = [dict(zip(("sentence1", "sentence2", "score"), pair, strict=True)) for pair in PAIRS]
    (tmp_path / "f.csv").write_text(
        "sentence1,sentence2,score\n" + "".join(f"{a},{b},{s}\n" for a, b, s in PAIRS), "utf-8"
    )
    jsonl = JsonLines(path=write_jsonl(tmp_path / "f.jsonl", rows), columns=COLUMNS, score_range=[0, 5])
    csv = Csv(path=str(tmp_path / "f.csv"), columns=COLUMNS, score_range=[0, 5])
    for source in (jsonl, csv):
        assert [(row.query, row.positives, row.scores) for row in source] == [(a, (b,), (s / 5,)) for a, b, s in PAIRS]
    assert jsonl.fingerprint == csv.fingerprint


def test_a_list_of_candidates_is_scaled_too(tmp_path):
    row = {"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [3], "neg_scores": [-1, 1]}
    source = JsonLines(path=write_jsonl(tmp_path / "f.jsonl", [row]), score_range=[-1, 3])
    assert source[0].scores == (1.0, 0.0, 0.5)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (5.1, r"f\.jsonl:1: the score 5\.1 is not in score_range=\[0, 5\]"),
        (-1, r"the score -1 is not in"),
        (float("nan"), r"the score nan is not in"),
        (None, r"f\.jsonl:1: score_range=\[0, 5\], and the row has no scores"),
    ],
)
def test_scores_off_the_scale_are_refused(score, message, tmp_path):
    path = write_jsonl(tmp_path / "f.jsonl", [{"sentence1": "a", "sentence2": "b", "score": score}])
    with pytest.raises(DataError, match=message):
        _ = JsonLines(path=path, columns=COLUMNS, score_range=[0, 5]).index


def test_scores_that_are_no_numbers_are_refused_without_a_scale_too(tmp_path):
    path = write_jsonl(tmp_path / "f.jsonl", [{"sentence1": "a", "sentence2": "b", "score": float("inf")}])
    with pytest.raises(DataError, match=r"f\.jsonl:1: the scores are \[inf\]\. Expected finite numbers"):
        _ = JsonLines(path=path, columns=COLUMNS).index


@pytest.mark.parametrize("bad", [[5, 0], [1, 1], [0], [0, 1, 2]])
def test_a_scale_that_is_none_is_refused(bad):
    with pytest.raises(ConfigError, match=r"expected \[lowest, highest\]"):
        Rows([], score_range=bad)


# What a query knows as its answers. A low-graded document must not be protected from being a negative elsewhere.

GRADED = TrainingExample(query="who sings", positives=("a dog sleeps",), scores=(0.0,), source="sts")
PLAIN = TrainingExample(query="who sings", positives=("a man",), negatives=("a dog sleeps",), source="pairs")


def relation(*examples: TrainingExample) -> Relation:
    tokenizer = TextTokenizer(tokenizer=minilm(), prompts=Prompts(), max_query_length=8, max_document_length=8)
    return collate(examples, tokenizer).relation


def answers(given: Relation, query: int) -> set[int]:
    """Documents, by text, that are no negatives of a query."""
    _, documents = RelationReader(given).exceptions("q2d", torch.tensor([query]))
    return set(given.document_ids[documents].tolist())


def test_a_graded_document_is_a_known_answer_in_its_own_source_alone():
    mixture = Mixture(sources={"sts": Rows([GRADED]), "pairs": Rows([PLAIN])})
    assert mixture.indexes[0].known_positives(0) == [text_id("a dog sleeps")]
    assert mixture.indexes[1].known_positives(0) == [text_id("a man")]


def test_in_a_blended_batch_it_protects_itself_unless_sources_are_routed():
    """Why graded sources have a loss of their own: without one, a pair graded 0 is an answer like any other."""
    blended = relation(PLAIN, GRADED)
    assert answers(blended, 0) == {text_id("a man"), text_id("a dog sleeps")}
    routed = blended.select(torch.nonzero(blended.sources == text_id("pairs")).flatten())
    assert answers(routed, 0) == {text_id("a man")}
    assert RelationReader(routed).hard_negatives(torch.tensor([0]))[1].tolist() == [1]


STSB = SHARED / "sts-stsb" / "en" / "train.tsv"


@pytest.mark.skipif(not STSB.exists(), reason="STS-B is not on this machine")
def test_sts_benchmark_reads_as_it_lies():
    source = PairsFile(path=str(STSB), columns=COLUMNS, score_range=[0, 5])
    assert len(source.index) == 5749
    scores = [row.scores[0] for row in source]
    assert (min(scores), max(scores)) == (0.0, 1.0)
    assert scores[0] == 1.0
    assert any('"' in row.query for row in source)  # in a .tsv a quotation mark is text
