"""Words in common: lexical search, which knows no model."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embedtrain import distributed
from embedtrain.data.draws import Ints
from embedtrain.errors import ConfigError, DataError
from embedtrain.mining.ranks import own_queries
from embedtrain.mining.records import NO_DOCUMENT, Found, MiningData, SearchRequest
from embedtrain.mining.search.files import whole
from embedtrain.store.ranks import on_main


class BM25:
    """Documents that share words with the query, by the scores of BM25 (Robertson and Zaragoza 2009, doi:10.1561/1500000019).

        score(q, d) = sum over words w of q of  idf(w) * tf / (tf + k1 * (1 - b + b * |d| / mean |d|))

        idf(w)   lucene: ln(1 + (D - n + 0.5) / (n + 0.5))    robertson: the same without "1 +", at least 0
                 atire: ln(D / n), and every term times k1 + 1

    tf: how often w is in d; |d|: words of d; n: documents with w, of D. A word that the query has twice counts twice. All
    documents are counted, and those in the corpus are searched: positives that it lacks have scores too. Instructions are
    not read.

    A document without a word of the query is never found, nor is one whose score is 0: `empty_queries` of the report found
    nothing, `short_queries` fewer than asked for. Scores have no upper limit and depend on the query's length; margins and
    thresholds of inner products mean nothing here, shares of the positive's score do.

    Made with bm25s (arXiv:2407.03618). Cost: a list of the documents of each word of the query. Memory: the index, 8 bytes for
    each different word of each document, mapped from disk by all ranks; while it is made, on rank 0 some 10 times that.

    k1         how soon further occurrences stop to count
    b          0: long documents are not held against, 1: fully
    method     lucene | robertson | atire
    stopwords  words that are not read: a language of bm25s (english, german, ...), or null
    stemmer    language of a Snowball stemmer, for which PyStemmer must be installed, or null
    pattern    what a word is; the default leaves out single letters, and takes text without spaces for one word: '[一-鿿]' makes
               a word of each Chinese character
    """

    reads_vectors = False

    def __init__(
        self,
        *,
        k1: float = 1.5,
        b: float = 0.75,
        method: Literal["lucene", "robertson", "atire"] = "lucene",
        stopwords: str | None = None,
        stemmer: str | None = None,
        pattern: str = r"(?u)\b\w\w+\b",
    ) -> None:
        if k1 < 0:
            raise ConfigError(f"miner.search.k1={k1}: expected 0 or more.")
        if not 0 <= b <= 1:
            raise ConfigError(f"miner.search.b={b}: expected 0 to 1.")
        if method not in ("lucene", "robertson", "atire"):
            raise ConfigError(f"miner.search.method={method}: expected lucene, robertson or atire.")
        self.k1 = k1
        self.b = b
        self.method = method
        self.stopwords = stopwords
        self.stemmer = stemmer
        self.pattern = pattern
        self._stem = None if stemmer is None else _stemmer(stemmer)
        try:
            self.words(["a word"])
        except re.error as error:
            raise ConfigError(f"miner.search.pattern={pattern!r} is no regular expression: {error}.") from None
        except ValueError as error:
            raise ConfigError(f"miner.search.stopwords={stopwords}: {error}") from None

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text, in its order."""
        return self._tokenized(texts, return_ids=False)

    def top(self, request: SearchRequest, k: int) -> Found:
        """The `k` best of the searched documents of each of this rank's queries.

        Raises DataError where no document has a word.
        """
        self._data = request.data
        path = request.folder / "bm25"
        on_main(lambda: self._write(request.data, path))
        self._index = _Index(path)
        own = own_queries(len(request.data.queries))
        found = Found(torch.full((len(own), k), NO_DOCUMENT, dtype=torch.int64), torch.full((len(own), k), torch.nan))
        with tqdm(own, desc="search", unit="query", disable=None if distributed.is_main() else True) as bar:
            for row, query in enumerate(bar):
                words = self._index.numbers(self.words([request.data.queries[query]])[0])
                documents, scores = self._index.top(words, request.data.num_searched, k)
                found.documents[row, : len(documents)] = torch.from_numpy(documents)
                found.scores[row, : len(scores)] = torch.from_numpy(scores)
        there = (found.documents != NO_DOCUMENT).sum(dim=1)
        counts = torch.stack([(there == 0).sum(), (there < min(k, request.data.num_searched)).sum()])
        self._empty, self._short = distributed.sum_over_ranks(counts).tolist()
        return found

    def score_pairs(self, queries: Ints, documents: Ints) -> Tensor:
        """[n] fp32: of n pairs, after `top`; also of documents that are not searched. NaN where there is no document."""
        scores = np.full(len(documents), np.nan, dtype=np.float32)
        order = np.argsort(queries, kind="stable")
        starts = np.flatnonzero(np.diff(queries[order], prepend=-1))
        for pairs in np.split(order, starts[1:]):
            if len(pairs):
                words = self._index.numbers(self.words([self._data.queries[int(queries[pairs[0]])]])[0])
                scores[pairs] = self._index.scores(words, documents[pairs])
        scores[documents == NO_DOCUMENT] = np.nan
        return torch.from_numpy(scores)

    def facts(self) -> dict[str, object]:
        return {
            "kind": "bm25",
            "documents": self._data.num_searched,
            "method": self.method,
            "k1": self.k1,
            "b": self.b,
            "stopwords": self.stopwords,
            "stemmer": self.stemmer,
            "words": len(self._index.vocabulary),
            "empty_queries": self._empty,
            "short_queries": self._short,
        }

    def _write(self, data: MiningData, path: Path) -> None:
        import bm25s

        tokenized = self._tokenized(data.documents, return_ids=True, show_progress=sys.stderr.isatty())
        if not tokenized.vocab:
            raise DataError(
                f"{data.source}: no document has a word that BM25 could find (miner.search.pattern={self.pattern!r}, "
                f"stopwords={self.stopwords}). Use another pattern, or another search."
            )
        index = bm25s.BM25(k1=self.k1, b=self.b, method=self.method)
        index.index(tokenized, create_empty_token=False, show_progress=sys.stderr.isatty())
        with whole(path) as unfinished:
            index.save(unfinished)

    def _tokenized(self, texts: Sequence[str], *, return_ids: bool, show_progress: bool = False) -> Any:
        import bm25s

        return bm25s.tokenize(
            texts,
            token_pattern=self.pattern,
            stopwords=self.stopwords,
            stemmer=self._stem,
            return_ids=return_ids,
            show_progress=show_progress,
        )


class _Index:
    """For each word the documents that have it, ascending, and its part of their scores. Read through memory maps."""

    def __init__(self, path: Path) -> None:
        import bm25s

        index = bm25s.BM25.load(path, mmap=True)
        self.vocabulary: dict[str, int] = index.vocab_dict
        self._starts, self._documents, self._parts = (index.scores[name] for name in ("indptr", "indices", "data"))
        self._sums = np.zeros(index.scores["num_docs"], dtype=np.float32)

    def numbers(self, words: Sequence[str]) -> list[int]:
        """Of those that occur in some document."""
        return [self.vocabulary[word] for word in words if word in self.vocabulary]

    def top(self, words: Sequence[int], num_searched: int, k: int) -> tuple[Ints, np.ndarray]:
        """The documents with the `k` largest scores above 0, best first, equal ones by number; and the scores."""
        for word in words:
            documents, parts = self._list(word)
            self._sums[documents] += parts  # no document twice in a list
        found = np.flatnonzero(self._sums[:num_searched] > 0)
        scores = self._sums[found]
        for word in words:
            self._sums[self._list(word)[0]] = 0
        if len(found) > k:
            reached = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
            found, scores = found[reached], scores[reached]
        order = np.argsort(-scores, kind="stable")[:k]
        return found[order], scores[order]

    def scores(self, words: Sequence[int], documents: Ints) -> np.ndarray:
        """[n] of these documents: summed in the order in which `top` sums, so that they are the same to the bit."""
        sums = np.zeros(len(documents), dtype=np.float32)
        for word in words:
            listed, parts = self._list(word)
            place = np.minimum(np.searchsorted(listed, documents), len(listed) - 1)
            sums += np.where(listed[place] == documents, parts[place], np.float32(0))
        return sums

    def _list(self, word: int) -> tuple[np.ndarray, np.ndarray]:
        some = slice(self._starts[word], self._starts[word + 1])
        return self._documents[some], self._parts[some]


def _stemmer(language: str) -> Any:
    try:
        snowball = importlib.import_module("Stemmer")
    except ImportError:
        raise ConfigError(
            f"miner.search.stemmer={language}: PyStemmer is not installed. pip install PyStemmer, or set it to null."
        ) from None
    try:
        return snowball.Stemmer(language)
    except KeyError:
        raise ConfigError(
            f"miner.search.stemmer={language}: unknown. There are: {', '.join(snowball.algorithms())}."
        ) from None
