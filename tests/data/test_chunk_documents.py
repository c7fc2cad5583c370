"""Documents in chunks: where they are cut, the headings that they keep, and that no word is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import chunk_documents
from data_pipelines.chunk_documents import chunks, sections, words

MARKDOWN = """intro line

# Setup

First.

## On Linux
Run this:

```
# no heading

make
```
## On Windows ##
None.
# Use
Now.
"""
HTML = """<html><head><title>T</title><style>p {}</style><body><nav><a>menu</a></nav><h1>Setup &amp; <em>use</em></h1>
<p>First <b>words</b>.</p><script>var x = "<h2>no</h2>";</script><h2>On Linux</h2><ul><li>one<li>two</ul></body></html>"""


def outline(text: str, ending: str) -> list[tuple[list[str], list[str]]]:
    return [([heading for _, heading in s.headings], s.paragraphs) for s in sections(text, ending)]


def test_markdown_has_the_headings_above_each_paragraph_and_code_has_none():
    assert outline(MARKDOWN, ".md") == [
        ([], ["intro line"]),
        (["Setup"], ["First."]),
        (["Setup", "On Linux"], ["Run this:", "```\n# no heading\n\nmake\n```".replace("\n\n", "\n")]),
        (["Setup", "On Windows"], ["None."]),
        (["Use"], ["Now."]),
    ]


def test_html_has_its_text_without_scripts_styles_and_navigation():
    assert outline(HTML, ".html") == [
        ([], []),
        (["Setup & use"], ["First words."]),
        (["Setup & use", "On Linux"], ["one", "two"]),
    ]


def test_a_text_has_paragraphs_alone():
    assert outline("# one\nline\n\n \n\ntwo\n", ".txt") == [([], ["# one\nline", "two"])]


def test_chunks_are_cut_at_the_largest_boundary_that_fits():
    assert chunks(["a b", "c"], 3) == ["a b\n\nc"]
    assert chunks(["a b", "c d"], 3) == ["a b", "c d"]
    assert chunks(["a b. c d! e f"], 4) == ["a b. c d!", "e f"]
    assert chunks(["a b c d e"], 2) == ["a b", "c d", "e"]
    assert chunks(["一二三。四五六。"], 5) == ["一二三。", "四五六。"]


@given(st.lists(st.text(alphabet="ab.? \n字。", max_size=40), max_size=5), st.integers(1, 9))
def test_no_word_is_lost_and_no_chunk_is_too_long(paragraphs: list[str], longest: int):
    found = chunks(paragraphs, longest)
    assert all(words(chunk) <= longest for chunk in found)
    assert "".join("".join(found).split()) == "".join("".join(paragraphs).split())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["chunk_documents", *map(str, arguments)])
    chunk_documents.main()


def test_the_program_reads_a_folder_and_says_where_each_chunk_is_from(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "docs" / "guide").mkdir(parents=True)
    (tmp_path / "docs" / "guide" / "setup.md").write_text(MARKDOWN)
    (tmp_path / "docs" / "notes.txt").write_text("some words")
    (tmp_path / "docs" / "skipped.pdf").write_bytes(b"%PDF")
    run(monkeypatch, tmp_path / "docs", "--words", 5, "--shortest", 2, "--out", tmp_path / "c.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert rows[0] == {"text": "intro line", "title": "Setup", "headings": [], "document": "guide/setup.md", "chunk": 0}
    assert rows[1]["headings"] == ["On Linux"]
    assert rows[-1] == {"text": "some words", "title": "notes", "headings": [], "document": "notes.txt", "chunk": 0}
    assert [row["chunk"] for row in rows[:-1]] == list(range(len(rows) - 1))
    assert f"{len(rows)} chunks of 2 documents" in capsys.readouterr().out


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch):
    out = tmp_path / "c.jsonl"
    with pytest.raises(SystemExit, match="no document in it"):
        run(monkeypatch, tmp_path, "--out", out)
    (tmp_path / "a.txt").write_bytes("Ümlaut".encode("latin-1"))
    with pytest.raises(SystemExit, match=r"a\.txt: byte 0 is not UTF-8"):
        run(monkeypatch, tmp_path, "--out", out)
    with pytest.raises(SystemExit, match="expected 1 <= shortest <= words"):
        run(monkeypatch, tmp_path, "--shortest", 9, "--words", 3, "--out", out)
