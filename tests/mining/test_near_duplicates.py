"""Copies and near-duplicates against sets of Python strings."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedtrain.errors import ConfigError
from embedtrain.mining.near_duplicates import Copies, copy_id, shingles, words

COPIES = [
    ("The cat's file-2.", "  the CAT s\tFile 2 "),
    ("\ufb01ne \uff12\uff10", "FINE 20"),
    ("Straße", "STRASSE"),
    ("Café", "Cafe\u0301"),
    ("snake_case", "snake case"),
    ("東京 タワー", "東京タワー"),
    ("ﾃｽﾄ", "テスト"),
    ("C++", "c"),
    ("❤\ufe0f love", "love"),
    ("???", " ??? "),
    ("!!\n!!", "!! !!"),
]
OTHERS = [
    ("no. 1", "no. 2"),
    ("cafe", "café"),
    ("किताब", "कताब"),  # a vowel sign makes another word
    ("?", "!"),
    ("→", "←"),
    ("ab c", "a bc"),
    ("not good", "good not"),
]


@pytest.mark.parametrize(("left", "right"), COPIES)
def test_copies_differ_in_case_punctuation_white_space_and_width_alone(left: str, right: str) -> None:
    assert copy_id(left) == copy_id(right)


@pytest.mark.parametrize(("left", "right"), OTHERS)
def test_texts_that_say_something_else_are_no_copies(left: str, right: str) -> None:
    assert copy_id(left) != copy_id(right)


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert words("हिन्दी में लिखा") == ["हिन्दी", "में", "लिखा"]
    assert words("한국어 텍스트") == ["한국어", "텍스트"]
    assert words("我爱Berlin。") == ["我", "爱", "berlin"]
    assert words("ก็ดี") == ["ก", "็", "ด", "ี"]
    assert words("𠀀𠀁 😀") == ["𠀀", "𠀁"]


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_words_of_words_are_the_same_words(text: str) -> None:
    again = words(" ".join(words(text)))
    assert again == words(text)


@given(st.text("aB é_.", max_size=12))
def test_ascii_and_other_texts_are_read_by_the_same_rules(text: str) -> None:
    plain = text.replace("é", "e")
    assert words(plain) == words(f"{plain} é")[:-1]


def test_lone_surrogates_have_an_identity() -> None:
    assert copy_id("a \ud800 b") == copy_id("A b")
    assert shingles("a \ud800").size == 1


# ---------------------------------------------------------------------------------------------- near-duplicates


def triples(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return set(zip(found, found[1:], found[2:], strict=False)) if len(found) > 2 else {(word,) for word in found}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> Fraction:
    return Fraction(len(a & b), len(a | b)) if a | b else Fraction(0)


def texts_with_edits(seed: int, count: int, longest: int) -> list[str]:
    """Texts of few words, and the same with words replaced, moved, left out or said twice."""
    random = np.random.default_rng(seed)
    found: list[list[str]] = []
    while len(found) < count:
        text = [f"w{n}" for n in random.integers(0, 40, random.integers(0, longest))]
        found.append(text)
        for _ in range(random.integers(0, 4)):
            text = list(text)
            for _ in range(random.integers(0, 3)):
                place = int(random.integers(0, len(text) + 1))
                text[place : place + int(random.integers(0, 3))] = [
                    f"w{n}" for n in random.integers(0, 40, random.integers(0, 3))
                ]
            found.append(text)
    return [" ".join(text) for text in found[:count]]


@pytest.mark.parametrize("longest", [5, 60, 2000])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 1.0])
def test_near_duplicates_are_those_of_sets_of_triples(threshold: float, longest: int) -> None:
    texts = texts_with_edits(seed=longest, count=40, longest=longest)
    pairs = list(itertools.product(range(len(texts)), repeat=2))
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    found = Copies(texts, threshold).near(left, right)
    sets = [triples(text) for text in texts]
    wanted = [jaccard(sets[a], sets[b]) >= Fraction(str(threshold)) for a, b in pairs]
    assert found.tolist() == wanted
    assert 40 < sum(wanted) + sum(text == "" for text in texts) < len(pairs)


def test_a_similarity_of_exactly_the_threshold_is_enough() -> None:
    for shared, either in ((4, 5), (7, 10), (1, 3), (29, 100), (57, 100)):
        # Words w0 w1 ...: n + 2 words make n triples, all different.
        longer = " ".join(f"w{n}" for n in range(either + 2))
        shorter = " ".join(f"w{n}" for n in range(shared + 2))
        pair = np.array([0]), np.array([1])
        assert Copies([longer, shorter], shared / either).near(*pair)[0], (shared, either)
        assert not Copies([longer, shorter], shared / either + 1e-9).near(*pair)[0]


def test_one_changed_word_counts_less_in_a_longer_text() -> None:
    def changed(length: int) -> bool:
        text = [f"w{n}" for n in range(length)]
        other = [*text[: length // 2], "new", *text[length // 2 + 1 :]]
        return bool(Copies([" ".join(text), " ".join(other)]).near(np.array([0]), np.array([1]))[0])

    assert [changed(length) for length in (6, 28, 29, 100)] == [False, False, True, True]


def test_short_texts_are_compared_by_their_words() -> None:
    copies = Copies(["Doe, Jane", "Jane Doe", "Jane", "John Doe", "Jane Doe Smith", "?!", "??"])
    left, right = np.array([0, 0, 0, 0, 5]), np.array([1, 2, 3, 4, 6])
    assert copies.near(left, right).tolist() == [True, False, False, False, False]


def test_without_a_threshold_nothing_is_near() -> None:
    assert not Copies(["a b c", "a b c"], None).near(np.array([0]), np.array([1])).any()


@pytest.mark.parametrize("threshold", [0, 1.5, -1])
def test_a_threshold_that_is_no_share_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=f"miner.near_duplicates={threshold}: expected a share"):
        Copies([], threshold)


class Counting(list):
    """Texts that count how often each is read."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(texts)
        self.reads = [0] * len(texts)

    def __getitem__(self, index):
        self.reads[index] += 1
        return super().__getitem__(index)


def test_only_what_is_asked_for_is_read_and_only_once() -> None:
    texts = Counting(["a", "A!", "b", "c d e f", "C, D, E, F"])
    copies = Copies(texts)
    ids = copies.ids_of(np.array([1, 0, 1]))
    assert ids[0] == ids[1] == ids[2]
    assert copies.near(np.array([3, 3]), np.array([4, 4])).all()
    assert texts.reads == [1, 1, 0, 1, 1]
    assert copies.near(np.array([4]), np.array([3])).all()
    assert len(set(copies.ids.tolist())) == 3
    assert copies.ids.tolist() == [copy_id(text) for text in list.__iter__(texts)]
    assert texts.reads == [1, 1, 1, 2, 2]
