"""Questions and headings as queries of chunks: the rows, what an endpoint is asked, and what it costs to start again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import questions
from embedtrain.data.sources import JsonLines
from embedtrain.mining.filters import endpoint
from tests.data.helpers import write_jsonl
from tests.mining.filters.test_judge import serving

CHUNKS: list[dict[str, Any]] = [
    {"text": "Run {make}.", "title": "Setup", "headings": ["On Linux"]},
    {"text": "Run it twice.", "title": "Setup", "headings": ["On Linux"]},
    {"text": "Pick a colour.", "title": "Use", "headings": []},
]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.0)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> list[dict[str, Any]] | None:
    path, out = write_jsonl(folder / "chunks.jsonl", CHUNKS), folder / "pairs.jsonl"
    out.unlink(missing_ok=True)
    cache = folder / "cache"
    given = ["questions", path, "--out", out, "--cache", cache, *arguments]
    monkeypatch.setattr(sys, "argv", [str(word) for word in given])
    questions.main()
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else None


def test_without_an_endpoint_headings_are_queries_of_all_their_chunks(tmp_path: Path, monkeypatch):
    rows = run(monkeypatch, tmp_path)
    assert rows == [
        {"query": "Setup: On Linux", "positives": ["Run {make}.", "Run it twice."]},
        {"query": "Use", "positives": ["Pick a colour."]},
    ]
    assert len(JsonLines(path=str(tmp_path / "pairs.jsonl")).index) == 2


def test_nothing_is_asked_before_one_says_so(tmp_path: Path, monkeypatch, capsys):
    with serving(lambda prompt: "never?") as (server, url):
        assert run(monkeypatch, tmp_path, "--endpoint", url, "--model", "small") is None
    assert server.prompts == []
    said = capsys.readouterr().out
    assert "3 chunks, 3 to ask about: about " in said
    assert "nothing was asked" in said


def reply(prompt: str) -> str:
    return "<think>What?</think>\n1. How do I set it up?\n2) With what\n- Where, then?\n3. And a third?" * (
        "Run" in prompt
    )


def test_questions_are_rows_and_a_job_that_starts_again_asks_nothing_twice(tmp_path: Path, monkeypatch):
    with serving(reply) as (server, url):
        asked = ["--endpoint", url, "--model", "small", "--count", "2", "--ask"]
        rows = run(monkeypatch, tmp_path, *asked)
        both = ["Run {make}.", "Run it twice."]
        assert rows == [
            {"query": "How do I set it up?", "positives": both},
            {"query": "Where, then?", "positives": both},
        ]
        assert sorted(prompt.split("\n\n", 1)[1] for prompt in server.prompts) == sorted(
            [
                "Setup: On Linux\n\nRun {make}.",
                "Setup: On Linux\n\nRun it twice.",
                "Use\n\nPick a colour.",
            ]
        )
        assert all("Write 2 questions" in prompt for prompt in server.prompts)
        assert run(monkeypatch, tmp_path, *asked) == rows
        assert len(server.prompts) == 3
        run(monkeypatch, tmp_path, *asked[:-2], "3", "--ask")  # another question
        assert len(server.prompts) == 6


def test_what_was_answered_is_kept_when_a_question_fails(tmp_path: Path, monkeypatch):
    def refusing(prompt: str) -> Any:
        return (400, b"no") if "colour" in prompt else "Why?"

    asked = ["--model", "small", "--concurrency", "1", "--ask"]
    with serving(refusing) as (_, url), pytest.raises(SystemExit, match="refuses the question"):
        run(monkeypatch, tmp_path, "--endpoint", url, *asked)
    with serving(lambda prompt: "Why?") as (server, url):
        assert run(monkeypatch, tmp_path, "--endpoint", url, *asked) == [
            {"query": "Why?", "positives": [chunk["text"] for chunk in CHUNKS]}
        ]
    assert len(server.prompts) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--endpoint", "localhost", "--model", "m"), "expected an address"),
        (("--endpoint", "http://localhost/v1"), "a model's name"),
        (("--endpoint", "http://localhost/v1", "--model", "m", "--count", "0"), "at least 1 question"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message, tmp_path: Path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, tmp_path, *arguments)


def test_a_line_that_is_no_chunk_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(CHUNKS[1], "title", " ")
    with pytest.raises(SystemExit, match=r"chunks\.jsonl:2: expected a chunk with text, title and headings"):
        run(monkeypatch, tmp_path)
