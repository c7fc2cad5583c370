"""Texts in two edited forms: what is edited, how much of it, and that draws are a function of seed and row."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import synonyms
from embedtrain.data.sources import Augmented, Texts
from embedtrain.errors import ConfigError, DataError
from embedtrain.types import TrainingExample
from tests.data.helpers import Rows, write_jsonl

WORDS = [f"w{n}" for n in range(400)]
LONG = [TrainingExample(query=" ".join(WORDS), positives=("else",), negatives=("no",), row=str(n)) for n in range(20)]


def sides(source: Augmented) -> list[tuple[list[str], list[str]]]:
    return [(example.query.split(), example.positives[0].split()) for example in source]


def test_words_are_left_out_with_their_probability_and_the_rest_keeps_its_order():
    for query, positive in sides(Augmented(rows=Rows(LONG), delete=0.25, swap=0.0)):
        for words in (query, positive):
            assert words == sorted(words, key=WORDS.index)
            assert 300 - 50 < len(words) < 300 + 50  # five standard deviations of 8.7
        assert query != positive


def test_words_change_places_with_the_next_and_none_is_lost():
    for query, _ in sides(Augmented(rows=Rows(LONG), delete=0.0, swap=0.25)):
        assert Counter(query) == Counter(WORDS)
        moved = sum(word != before for word, before in zip(query, WORDS, strict=True))
        assert 100 < moved < 250


def test_words_with_synonyms_become_one_of_them(tmp_path: Path):
    path = write_jsonl(tmp_path / "s.jsonl", [{"word": "fast", "synonyms": ["quick", "speedy"]}])
    rows = Rows([TrainingExample(query="Fast cars " * 200, positives=("x",), row="0")])
    source = Augmented(rows=rows, delete=0.0, swap=0.0, replace=0.5, synonyms=path)
    found = Counter(source[0].positives[0].split())
    assert found["cars"] == 200
    assert found["Fast"] + found["quick"] + found["speedy"] == 200
    assert 60 < found["Fast"] < 140
    assert 20 < found["quick"] < 80


def test_only_the_positive_is_edited_where_the_query_is_the_text():
    source = Augmented(rows=Rows(LONG), both=False)
    assert all(query == WORDS and positive != WORDS for query, positive in sides(source))
    assert all(not example.negatives for example in source)


def test_it_is_the_same_in_every_process_and_read_either_way():
    source, again, other = (Augmented(rows=Rows(LONG), seed=seed) for seed in (3, 3, 4))
    assert [source[row] for row in range(len(LONG))] == list(again)
    assert [example.query for example in source] != [example.query for example in other]
    assert len({example.query for example in source}) == len(LONG)  # equal texts are edited by their rows
    assert source.fingerprint == again.fingerprint


@given(
    st.text(alphabet="ab \n", min_size=1).filter(str.strip), st.floats(0, 0.999), st.floats(0, 0.999), st.integers(0, 9)
)
def test_one_word_always_stays_and_none_is_made_up(text: str, delete: float, swap: float, seed: int):
    if not delete + swap:
        return
    rows = Rows([TrainingExample(query=text, positives=("x",), row="0")])
    example = Augmented(rows=rows, delete=delete, swap=swap, seed=seed)[0]
    for side in (example.query, *example.positives):
        assert side
        assert not Counter(side.split()) - Counter(text.split())


def test_it_reads_plain_texts(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one two three four\nfive six seven eight\n", encoding="utf-8")
    source = Augmented(rows=Texts(path=str(tmp_path / "a.txt")), delete=0.5)
    assert [example.row for example in source] == ["a.txt:1", "a.txt:2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delete": 1.0}, r"delete=1.0: expected a probability"),
        ({"swap": -0.1}, r"swap=-0.1: expected a probability"),
        ({"delete": 0.0, "swap": 0.0}, r"nothing would be edited"),
        ({"replace": 0.1}, r"replace=0.1, synonyms=None: expected both"),
        ({"synonyms": "s.jsonl"}, r"replace=0.0, synonyms=s.jsonl: expected both"),
        ({"seed": -1}, r"seed=-1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Augmented(rows=Rows(LONG), **settings)


def test_a_line_that_is_no_synonyms_is_named(tmp_path: Path):
    path = write_jsonl(tmp_path / "s.jsonl", [{"word": "a", "synonyms": ["b"]}, {"word": "a", "synonyms": "b"}])
    with pytest.raises(DataError, match=r's\.jsonl, line 2: expected {"word": text, "synonyms": \[texts\]}'):
        Augmented(rows=Rows(LONG), replace=0.1, synonyms=path)


def wordnet(folder: Path, adjectives: str) -> Path:
    folder.mkdir()
    for name in synonyms.FILES:
        (folder / name).write_text("  1 This software and database\n", encoding="utf-8")
    (folder / "data.adj").write_text("  1 This software\n" + adjectives, encoding="utf-8")
    return folder


def test_words_of_a_synset_are_synonyms_of_each_other(tmp_path: Path, monkeypatch, capsys):
    adjectives = (
        "00976508 00 s 03 fast 0 quick(a) 1 high-speed 0 001 & 00976000 a 0000 | moving rapidly  \n"
        "00979862 00 s 02 Quick 0 light_on_its_feet 0 000 | nimble  \n"
        "00990000 00 s 02 quick 2 prompt 0 000 | done without delay  \n"
    )
    out = tmp_path / "synonyms.jsonl"
    monkeypatch.setattr(sys, "argv", ["synonyms", str(wordnet(tmp_path / "dict", adjectives)), "--out", str(out)])
    synonyms.main()
    assert "4 words" in capsys.readouterr().out
    source = Augmented(rows=Rows(LONG), replace=0.1, synonyms=str(out))
    assert source.synonyms == {
        "fast": ["quick", "high-speed"],
        "high-speed": ["fast", "quick"],
        "prompt": ["quick"],
        "quick": ["fast", "high-speed", "prompt"],
    }


def test_a_folder_that_is_not_wordnet_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"data.noun does not exist. Expected the dict folder"):
        synonyms.synonyms(tmp_path)
    with pytest.raises(DataError, match=r"data.adj, line 2: expected a synset"):
        synonyms.synonyms(wordnet(tmp_path / "dict", "hello\n"))
