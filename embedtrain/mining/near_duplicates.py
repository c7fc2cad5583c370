"""Which documents say the same: copies, and near-duplicates by their words.

    words          of a text after NFKC and casefold: runs of letters, digits and marks; one character each in scripts that put
                   no spaces between words
    copies         the same words in the same order: case, punctuation and white space do not count ("C++" is a copy of "C")
    near-duplicates  the sets of word triples have a Jaccard similarity, shared / in either, of at least the threshold

One changed word changes three triples, so that at 0.8 two texts of fewer than 29 words with one word changed are no
near-duplicates: in "the capital of France is Paris" one word is the answer. A text under three words has no triple and is
compared by its single words: "Doe, Jane" is "Jane Doe". It never meets a longer text, with which it could share 2 of 3
words at most.

Comparing is exact. It has two steps, so that the second is rare:

1. Each set is folded into 1,024 bits: bit b tells whether an odd number of its triples has hash b. Where two sets differ in n
   triples, their bits differ in n places at most, and a Jaccard similarity of t allows n <= (1 - t) / (1 + t) * (sum of both
   sizes). Nearly all pairs differ in more (the bitmap filter of Sandes, Teodoro and Melo, arXiv:1711.07295).
2. The sets of the others are intersected.

Cost, one core, abstracts of 200 words: 50 us per document for its words, once; 0.1 ms more where it is compared; 0.2 us per
pair. Texts above some 2,000 words pass the first step too often, and a pair costs 0.1 ms.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedtrain.data.draws import Ints
from embedtrain.errors import ConfigError
from embedtrain.types import text_id

Shingles = NDArray[np.uint64]

BITS = 1024
# Odd, so that each is invertible modulo 2 ** 64, and different, so that the order of words counts.
_PLACES = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
_ASCII_WORDS = re.compile(r"[a-z0-9]+")
# Thai and Lao; Myanmar; Khmer; kana; Han. Beyond the basic plane, where more of Han is, every letter is a word.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
)  # fmt: skip
_PAIRS = 2**17  # compared at a time: two blocks of 16 MB


def words(text: str) -> list[str]:
    """The words of a text, without what writers vary.

    >>> words("The  CAT's ﬁle_2"), words("東京 tower")
    (['the', 'cat', 's', 'file', '2'], ['東', '京', 'tower'])
    """
    if text.isascii():
        return _ASCII_WORDS.findall(text.lower())
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _any_words().findall(unicodedata.normalize("NFKC", folded))


@cache
def _any_words() -> re.Pattern[str]:
    """Classes are written out, since `re` looks up those of the basic plane in a table."""
    unspaced = {code for first, last in _UNSPACED for code in range(first, last + 1)}
    letters = [code for code in range(0x10000) if _is_of_a_word(code)]
    spaced = "".join(chr(code) for code in letters if code not in unspaced)
    single = "".join(chr(code) for code in letters if code in unspaced)
    return re.compile(rf"[{spaced}]+|[{single}]|(?=\w)[\U00010000-\U0010ffff]")


def _is_of_a_word(code: int) -> bool:
    # Marks are, or vowels of Hindi and Tamil would be lost; variation selectors only choose a glyph.
    return chr(code).isalnum() or (unicodedata.category(chr(code))[0] == "M" and not 0xFE00 <= code <= 0xFE0F)


def copy_id(text: str) -> int:
    """63 bits, equal for copies. A text without letters and digits is a copy of what is equal after NFKC and casefold."""
    found = words(text)
    return text_id(" ".join(found or unicodedata.normalize("NFKC", text).casefold().split()))


def shingles(text: str) -> Shingles:
    """Hashes of the word triples of a text, ascending, each once; of its words where there are fewer than three."""
    found = words(text)
    hashes = np.fromiter(map(_word_id, found), dtype=np.uint64, count=len(found))
    if hashes.size >= 3:
        hashes = hashes[:-2] * _PLACES[0] + hashes[1:-1] * _PLACES[1] + hashes[2:] * _PLACES[2]
    return np.unique(hashes)


@lru_cache(maxsize=2**17)
def _word_id(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))


class Copies:
    """Compares documents by their numbers; what is known of one is kept, and of the others nothing is computed.

    documents  [D] texts
    threshold  Jaccard similarity from which on documents are near-duplicates; null: copies only
    """

    def __init__(self, documents: Sequence[str], threshold: float | None = 0.8) -> None:
        if threshold is not None and not 0 < threshold <= 1:
            raise ConfigError(f"miner.near_duplicates={threshold}: expected a share above 0, up to 1, or null.")
        self.documents = documents
        self.threshold = threshold
        self._ids: Ints = np.full(len(documents), -1, dtype=np.int64)
        # 26 MB of abstracts; 70 MB. A document that fell out is read again.
        self._shingles = lru_cache(maxsize=2**14)(lambda document: shingles(self.documents[document]))
        self._signature = lru_cache(maxsize=2**18)(self._fold)

    @property
    def ids(self) -> Ints:
        """[D] `copy_id` of every document."""
        return self.ids_of(np.arange(len(self.documents), dtype=np.int64))

    def ids_of(self, documents: Ints) -> Ints:
        """[n] `copy_id` of these documents."""
        for document in np.unique(documents[self._ids[documents] < 0]).tolist():
            self._ids[document] = copy_id(self.documents[document])
        return self._ids[documents]

    def near(self, left: Ints, right: Ints) -> NDArray[np.bool_]:
        """[n] whether the two documents of each pair are near-duplicates; never where the threshold is null."""
        found = np.zeros(left.size, dtype=np.bool_)
        if self.threshold is None or not left.size:
            return found
        distinct, places = np.unique(np.concatenate([left, right]), return_inverse=True)
        signatures = [self._signature(document) for document in distinct.tolist()]
        sizes = np.array([size for size, _ in signatures], dtype=np.int64)
        bits = np.frombuffer(b"".join(folded for _, folded in signatures), dtype=np.uint64).reshape(-1, BITS // 64)
        a, b = places[: left.size], places[left.size :]
        # A little more than allowed, since the bound is rounded; the second step is exact.
        allowed = (1 - self.threshold) / (1 + self.threshold) * (sizes[a] + sizes[b]) + 1e-6
        possible = np.flatnonzero((np.abs(sizes[a] - sizes[b]) <= allowed) & (sizes[a] > 0) & (sizes[b] > 0))
        for start in range(0, possible.size, _PAIRS):
            at = possible[start : start + _PAIRS]
            different = np.bitwise_count(bits[a[at]] ^ bits[b[at]]).sum(1, dtype=np.int64)
            for pair in at[different <= allowed[at]].tolist():
                found[pair] = self._jaccard(int(left[pair]), int(right[pair])) >= self.threshold
        return found

    def _jaccard(self, left: int, right: int) -> float:
        a, b = self._shingles(left), self._shingles(right)
        shared = np.intersect1d(a, b, assume_unique=True).size
        return shared / (a.size + b.size - shared)

    def _fold(self, document: int) -> tuple[int, bytes]:
        """How many shingles a document has, and their bits."""
        found = self._shingles(document)
        odd = np.bincount((found % np.uint64(BITS)).astype(np.int64), minlength=BITS) & 1
        return found.size, np.packbits(odd.astype(np.uint8)).tobytes()
