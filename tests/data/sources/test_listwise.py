"""Rows of another source whose query lists its candidates."""

from pathlib import Path

import pytest

from embedtrain.data.sources import JsonLines, ListwisePrompts
from embedtrain.errors import ConfigError
from tests.data.helpers import write_jsonl

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox"]
ROWS = [
    {
        "query": f"question {n}",
        "positives": ["best one", "good one"],
        "negatives": WORDS,
        "scores": [9, 8, 6, 5, 4, 3, 2, 1],
    }
    for n in range(12)
]
SCORE = dict(zip(["best one", "good one", *WORDS], map(float, [9, 8, 6, 5, 4, 3, 2, 1]), strict=True))


def prompts(tmp_path: Path, rows=ROWS, **settings) -> ListwisePrompts:
    inner = JsonLines(path=write_jsonl(tmp_path / "rows.jsonl", rows), instruction="find it")
    return ListwisePrompts(rows=inner, **settings)


def listed(query: str) -> list[str]:
    return [line.split("] ")[1] for line in query.splitlines() if line.startswith("[")]


def test_a_row_keeps_what_its_prompt_lists_with_the_scores(tmp_path: Path):
    source = prompts(tmp_path, num_documents=4, chat="none", task="rank")
    assert len(source.index) == 12
    for row in source:
        candidates = [*row.positives, *row.negatives]
        assert row.positives == ("best one",)
        assert sorted(listed(row.query)) == sorted(candidates)
        assert len(set(candidates)) == 4
        assert row.scores == tuple(SCORE[text] for text in candidates)
        assert row.instruction is None
        assert row.query.startswith("rank:\nDocuments:\n[1] ")
    assert source[3].query.endswith("\nQuery: question 3")


def test_the_place_in_the_list_does_not_say_which_is_best(tmp_path: Path):
    rows = list(prompts(tmp_path, num_documents=3, chat="none"))
    assert {listed(row.query).index("best one") for row in rows} == {0, 1, 2}
    assert {text for row in rows for text in row.negatives} == set(WORDS)


def test_it_is_the_same_in_every_process_and_read_either_way(tmp_path: Path):
    source, again, other = (prompts(tmp_path, num_documents=3, seed=seed) for seed in (0, 0, 1))
    assert [source[row] for row in range(12)] == list(again)
    assert [row.query for row in source] != [row.query for row in other]
    assert source.fingerprint == again.fingerprint != other.fingerprint


def test_few_candidates_no_scores_and_long_documents(tmp_path: Path):
    (row,) = prompts(tmp_path, [{"query": "q", "positives": ["one two three"], "negatives": ["four"]}], max_words=2)
    assert (row.negatives, row.scores) == (("four",), None)
    assert sorted(listed(row.query)) == ["four", "one two"]
    assert row.positives == ("one two three",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_documents": 1}, "num_documents=1, .* at least 2 documents"),
        ({"max_words": 0}, "max_words=0"),
        ({"form": "prose"}, "form='prose': expected code or paper"),
        ({"chat": "llama"}, "chat='llama': expected qwen3 or none"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        prompts(tmp_path, **settings)
