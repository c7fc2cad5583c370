"""Rows by class, and what is drawn for one of them from its own class and from the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedtrain.data.draws import Ints


@dataclass(frozen=True, slots=True)
class Classes:
    """R labelled rows. A *member* is a text of a class, standing for all rows that repeat it; members lie class by class.

    A text with several classes is a member of each, and never drawn as something that another class is contrasted with.
    """

    names: tuple[str, ...]  # [C], sorted
    label: Ints  # [R] number of the class of each row
    text: Ints  # [R] id of the text of each row
    members: Ints  # [M] a row of each member
    offsets: Ints  # [C + 1]
    unambiguous: Ints  # [U] members of one class only, ascending

    @classmethod
    def of(cls, labels: list[str], texts: list[int]) -> Classes:
        """From the class and the text id of each row."""
        names, label = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True)
        text = np.array(texts, dtype=np.int64)
        order = np.lexsort((np.arange(text.size), text, label))
        first = np.ones(text.size, dtype=np.bool_)
        first[1:] = (np.diff(label[order]) != 0) | (np.diff(text[order]) != 0)
        members = order[first]
        _, number, times = np.unique(text[members], return_inverse=True, return_counts=True)
        return cls(
            names=tuple(names.tolist()),
            label=label.astype(np.int64),
            text=text,
            members=members,
            offsets=np.concatenate([[0], np.cumsum(np.bincount(label[members], minlength=names.size))]),
            unambiguous=np.flatnonzero(times[number] == 1),
        )

    @property
    def sizes(self) -> Ints:
        """Different texts of each class, [C]."""
        return np.diff(self.offsets)

    @property
    def num_ambiguous(self) -> int:
        """Different texts that have several classes."""
        return np.unique(self.text[self.members]).size - self.unambiguous.size

    def others_of(self, row: int, count: int, seed: int) -> Ints:
        """Rows of `count` other texts of the row's class, or of as many as there are, in random order."""
        first, last = self.offsets[self.label[row]], self.offsets[self.label[row] + 1]
        members = self.members[first:last]
        own = first + np.searchsorted(self.text[members], self.text[row])  # within a class members are sorted by text
        drawn = _sample(last - first - 1, count, (seed, row, 0))
        return self.members[first + drawn + (first + drawn >= own)]

    def outside_of(self, row: int, count: int, seed: int) -> Ints:
        """Rows of `count` texts of other classes, or of as many as there are, in random order."""
        label = self.label[row]
        first, last = np.searchsorted(self.unambiguous, self.offsets[label : label + 2])
        drawn = _sample(self.unambiguous.size - (last - first), count, (seed, row, 1))
        return self.members[self.unambiguous[drawn + (last - first) * (drawn >= first)]]

    def other_names(self, row: int, count: int | None, seed: int) -> list[str]:
        """`count` other classes, or all that there are, in random order."""
        others = len(self.names) - 1
        drawn = _sample(others, others if count is None else count, (seed, row, 1))
        return [self.names[n] for n in drawn + (drawn >= self.label[row])]


def _sample(size: int, count: int, seed: tuple[int, ...]) -> Ints:
    """Up to `count` different numbers below `size`, in random order."""
    return np.random.default_rng(seed).choice(size, size=min(size, count), replace=False)
