import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.records import NO_DOCUMENT, Found
from embedtrain.mining.search.bm25 import BM25
from tests.helpers.ranks import run_ranks
from tests.mining.search.stand_ins import assert_same, joined, lexical_request

WORDS = ["red", "fox", "dog", "The", "lazy", "jumps", "OVER", "a", "quick", "brown", "müde", "x1", "the"]


def texts(count: int, longest: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    weights /= weights.sum()
    return [" ".join(generator.choice(WORDS, generator.integers(1, longest), p=weights)) + "." for _ in range(count)]


def words(text: str) -> list[str]:
    """Letters and digits, two or more, in lower case."""
    return [word for word in re.split(r"\W+", text.lower()) if len(word) > 1]


def slow_score(query: str, document: str, documents: list[str], k1: float, b: float, method: str) -> float:
    mean = sum(len(words(d)) for d in documents) / len(documents)
    total = 0.0
    for word in words(query):
        n, tf = sum(word in words(d) for d in documents), words(document).count(word)
        if not tf:
            continue
        odds = (len(documents) - n + 0.5) / (n + 0.5)
        if method == "atire":
            idf = math.log(len(documents) / n) * (k1 + 1)
        else:
            idf = math.log(1 + odds) if method == "lucene" else max(0.0, math.log(odds))
        total += idf * tf / (tf + k1 * (1 - b + b * len(words(document)) / mean))
    return total


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire"])
@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0)])
def test_scores_are_those_of_the_formula(tmp_path, method, k1, b):
    queries, documents = texts(12, 5, seed=0), texts(60, 12, seed=1)
    search = BM25(method=method, k1=k1, b=b)
    found = search.top(lexical_request(queries, documents, tmp_path, num_searched=50), 8)
    for row, query in enumerate(queries):
        expected = [slow_score(query, document, documents, k1, b, method) for document in documents]
        numbers = [n for n in found.documents[row].tolist() if n != NO_DOCUMENT]
        assert numbers == sorted(numbers, key=lambda n: (-found.scores[row][found.documents[row] == n].item(), n))
        assert found.scores[row, : len(numbers)].tolist() == pytest.approx([expected[n] for n in numbers], rel=1e-5)
        above = sorted((s for s in expected[:50] if s > 1e-9), reverse=True)[:8]
        assert found.scores[row, : len(numbers)].tolist() == pytest.approx(above, rel=1e-5)
        pairs = search.score_pairs(np.full(61, row), np.array([*range(60), NO_DOCUMENT]))
        assert pairs[:60].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert pairs[60].isnan()


def test_a_pair_has_the_score_that_it_was_found_with(tmp_path):
    queries, documents = texts(12, 5, seed=0), texts(60, 12, seed=1)
    search = BM25()
    found = search.top(lexical_request(queries, documents, tmp_path), 8)
    row, column = (found.documents != NO_DOCUMENT).nonzero(as_tuple=True)
    shuffled = torch.randperm(len(row), generator=torch.Generator().manual_seed(0))
    row, column = row[shuffled], column[shuffled]
    assert torch.equal(search.score_pairs(row.numpy(), found.documents[row, column].numpy()), found.scores[row, column])
    assert search.score_pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)).shape == (0,)


def test_equal_scores_are_ranked_by_number(tmp_path):
    documents = ["fox", "dog", "fox fox dog", "dog", "dog", "fox", "dog"]
    found = BM25().top(lexical_request(["dog"], documents, tmp_path), 3)
    assert found.documents.tolist() == [[1, 3, 4]]


def test_a_query_without_a_known_word_finds_nothing(tmp_path):
    queries = ["dog", "unheard of", "!?", "fox dog"]
    search = BM25()
    found = search.top(lexical_request(queries, ["the dog", "a fox", "cat", "fox"], tmp_path, num_searched=3), 3)
    assert found.documents.tolist() == [[0, -1, -1], [-1, -1, -1], [-1, -1, -1], [0, 1, -1]]
    assert torch.equal(found.scores.isnan(), found.documents == NO_DOCUMENT)
    assert (search.facts()["empty_queries"], search.facts()["short_queries"]) == (2, 4)


def test_a_score_of_nothing_is_no_find(tmp_path):
    """A word in more than half of the documents tells robertson nothing."""
    found = BM25(method="robertson").top(lexical_request(["dog"], ["dog", "dog", "dog fox"], tmp_path), 3)
    assert found.documents.tolist() == [[NO_DOCUMENT] * 3]


def test_stopwords_are_not_read(tmp_path):
    queries, documents = ["the dog", "the"], ["the the the", "dog"]
    assert BM25().top(lexical_request(queries, documents, tmp_path), 2).documents.tolist() == [[0, 1], [0, -1]]
    (tmp_path / "english").mkdir()
    search = BM25(stopwords="english")
    found = search.top(lexical_request(queries, documents, tmp_path / "english"), 2)
    assert found.documents.tolist() == [[1, -1], [-1, -1]]
    assert search.facts()["stopwords"] == "english"


def test_a_pattern_says_what_a_word_is(tmp_path):
    search = BM25(pattern="[一-鿿]")
    found = search.top(lexical_request(["猫"], ["黑猫", "犬"], tmp_path), 2)
    assert found.documents.tolist() == [[0, -1]]
    assert BM25().words(["黑猫"]) == [["黑猫"]]


def test_a_stemmer_joins_the_forms_of_a_word(tmp_path, monkeypatch):
    class Stemmer:
        def __init__(self, language):
            if language != "english":
                raise KeyError(language)

        def stemWords(self, given):
            return [word.removesuffix("s") for word in given]

    monkeypatch.setitem(sys.modules, "Stemmer", SimpleNamespace(Stemmer=Stemmer, algorithms=lambda: ["english"]))
    search = BM25(stemmer="english")
    found = search.top(lexical_request(["dogs", "dog"], ["one dog", "dogs", "fox"], tmp_path), 3)
    assert found.documents.tolist() == [[1, 0, -1], [1, 0, -1]]
    with pytest.raises(ConfigError, match=r"stemmer=klingon: unknown\. There are: english"):
        BM25(stemmer="klingon")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": -1}, r"k1=-1: expected 0 or more"),
        ({"b": 1.5}, r"b=1.5: expected 0 to 1"),
        ({"method": "tfidf"}, r"method=tfidf: expected lucene"),
        ({"stopwords": "klingon"}, r"stopwords=klingon: .*English"),
        ({"pattern": "("}, r"pattern='\(' is no regular expression"),
        ({"stemmer": "english"}, r"PyStemmer is not installed. pip install PyStemmer"),
    ],
)
def test_settings_that_cannot_be_are_refused(monkeypatch, settings, message):
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    with pytest.raises(ConfigError, match=message):
        BM25(**settings)


def test_documents_without_words_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"toy: no document has a word that BM25 could find"):
        BM25().top(lexical_request(["dog"], ["?", "a b"], tmp_path), 2)
    assert list(tmp_path.iterdir()) == []


def search_of_a_rank(queries, documents, folder) -> tuple[Found, dict, torch.Tensor]:
    search = BM25()
    found = search.top(lexical_request(queries, documents, Path(folder), num_searched=50), 8)
    return found, search.facts(), search.score_pairs(np.array([3, 3]), np.array([7, 55]))


def test_ranks_read_one_index(tmp_path):
    queries, documents = [*texts(12, 5, seed=0), "unheard"], texts(60, 12, seed=1)
    (tmp_path / "one").mkdir()
    expected = search_of_a_rank(queries, documents, tmp_path / "one")
    parts = run_ranks(search_of_a_rank, 2, queries, documents, str(tmp_path))
    assert_same(joined([part[0] for part in parts]), expected[0])
    for part in parts:
        assert part[1] == expected[1]
        assert torch.equal(part[2], expected[2])
