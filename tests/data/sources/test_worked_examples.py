"""Rows of another source whose instruction shows how the task was done for others."""

from pathlib import Path

import pytest

from embedtrain.data.prompts import Prompts
from embedtrain.data.sources import JsonLines, WorkedExamples
from embedtrain.data.sources.worked_examples import with_examples
from embedtrain.errors import ConfigError, DataError
from tests.data.helpers import write_jsonl

ROWS = [{"query": f"question {n}", "positives": [f"answer {n} in words"], "negatives": ["no"]} for n in range(40)]


def examples(tmp_path: Path, rows=ROWS, instruction="find it", **settings) -> WorkedExamples:
    inner = JsonLines(path=write_jsonl(tmp_path / "rows.jsonl", rows), instruction=instruction)
    return WorkedExamples(rows=inner, **settings)


def pairs(instruction: str | None) -> list[tuple[str, str]]:
    assert instruction is not None
    blocks = instruction.split("\n\nInstruct: ")
    assert blocks[-1] == "find it"
    found = []
    for block in blocks[:-1]:
        task, query, answer = block.splitlines()
        assert task == "find it"
        found.append((query.removeprefix("Query: "), answer.removeprefix("Response: ")))
    return found


def test_the_prompt_and_the_instruction_make_the_whole_text():
    prompts = Prompts(query="Instruct: {instruction}\nQuery: ")
    instruction = with_examples("find it", [("one", "first"), ("two", "second")])
    assert "".join(prompts.around("query", instruction=instruction)) == (
        "Instruct: find it\nQuery: one\nResponse: first\n\nInstruct: find it\nQuery: two\nResponse: second\n\n"
        "Instruct: find it\nQuery: "
    )
    assert with_examples("find it", []) == "find it"
    assert with_examples("{t}", [("q", "d")], form="bge") == "{t}\n<query>q\n<response>d\n\n<instruct>{t}"


def test_nothing_but_the_instruction_changes_and_every_number_up_to_the_most_comes(tmp_path: Path):
    source = examples(tmp_path, most=3, max_words=2)
    shown = [pairs(row.instruction) for row in source]
    assert {len(found) for found in shown} == {0, 1, 2, 3}
    for number, (row, found) in enumerate(zip(source, shown, strict=True)):
        assert (row.query, row.positives, row.negatives) == (
            f"question {number}",
            (f"answer {number} in words",),
            ("no",),
        )
        assert len(set(found)) == len(found)
        for query, answer in found:
            assert query != row.query
            assert answer == query.replace("question", "answer")  # two words of it


def test_an_example_never_gives_the_answer_away(tmp_path: Path):
    twins = [{"query": f"question {n % 2}", "positives": ["shared", f"own {n}"]} for n in range(6)]
    assert all(pairs(row.instruction) == [] for row in examples(tmp_path, twins))


def test_it_is_the_same_in_every_process_and_read_either_way(tmp_path: Path):
    source, again, other = (examples(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert [source[row] for row in range(40)] == list(again)
    assert [row.instruction for row in source] != [row.instruction for row in other]
    assert source.fingerprint == again.fingerprint


def test_rows_without_a_task_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"rows.jsonl:1: .* \(rows.instruction\)"):
        _ = examples(tmp_path, instruction=None).index


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most": 0}, "most=0, .* at least 1 example"),
        ({"max_words": 0}, "max_words=0"),
        ({"form": "chat"}, "form='chat': expected e5 or bge"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        examples(tmp_path, **settings)
