"""Rows whose query is a listwise prompt."""

import sys
from pathlib import Path

import pytest

from data_pipelines import prf_prompts
from data_pipelines.prf_prompts import listwise_prompt, ranked_row
from embedtrain.data.sources import JsonLines
from embedtrain.errors import DataError
from tests.data.helpers import write_jsonl

RANKED = {"query": "what is a jay", "documents": ["a car", "a bird", "a tree"], "ranking": [2, 3, 1]}


def test_the_prompt_is_that_of_the_code_or_of_the_paper():
    assert listwise_prompt("q", ["one", "two"], instruction="rank") == (
        "<|im_start|>user\nrank:\nDocuments:\n[1] one\n[2] two\nQuery: q<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    paper = listwise_prompt("q", ["one", "two"], instruction="rank", form="paper", chat="{prompt}")
    assert paper == "rank: Documents: [1] one [2] two Search Query: q"


def test_braces_of_a_text_stay_what_they_are():
    assert listwise_prompt("{q}", ["{0} {prompt}"], instruction="{x}", chat="<{prompt}>").count("{") == 4


def test_the_best_document_is_the_positive_and_scores_go_down():
    row = ranked_row(RANKED, "f:1", num_documents=2, chat="{prompt}")
    assert (row["positives"], row["negatives"], row["scores"]) == (["a bird"], ["a tree", "a car"], [2.0, 1.0, 0.0])
    assert "[1] a car\n[2] a bird\nQuery: what is a jay" in row["query"]
    assert "a tree" not in row["query"]
    scored = ranked_row({**RANKED, "scores": [0.5, 0.2, 0.9], "instruction": "do it"}, "f:1", num_documents=3)
    assert (scored["positives"], scored["scores"]) == (["a tree"], [0.9, 0.5, 0.2])
    assert "do it:\nDocuments:" in scored["query"]
    assert ranked_row(RANKED, "f:1", num_documents=0)["query"] == "what is a jay"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranking": [1, 2]}, r"f:1: expected ranking, the numbers 1 to 3"),
        ({"ranking": [1, 2, 2]}, r"the numbers 1 to 3 with the best document first"),
        ({"ranking": None}, r"or scores; got None"),
        ({"scores": [1.0]}, r"f:1: expected 3 scores"),
        ({"documents": ["one"]}, r"f:1: expected a query and at least 2 documents"),
        ({"query": None}, r"f:1: expected a query"),
    ],
)
def test_candidates_that_are_not_complete_are_named(change, message):
    with pytest.raises(DataError, match=message):
        ranked_row({**RANKED, **change}, "f:1", num_documents=2)


def test_the_program_writes_what_a_source_reads(tmp_path: Path, monkeypatch, capsys):
    path, out = write_jsonl(tmp_path / "candidates.jsonl", [RANKED, RANKED]), tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["prf_prompts", path, "--out", str(out), "--chat", "none"])
    prf_prompts.main()
    assert "2 rows" in capsys.readouterr().out
    source = JsonLines(path=str(out))
    assert len(source.index) == 2
    assert (source[0].positives, source[0].scores) == (("a bird",), (2.0, 1.0, 0.0))
