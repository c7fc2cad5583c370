"""What may be a negative, and which queries are worth training on. One filter per file.

    Candidates --filters, in their order-->  `kept`, fewer and fewer
    Candidates --query filters-->            queries, fewer and fewer

A filter is called for some queries at a time. One that must see everything before (models that all ranks ask together, a
limit on what may be spent) has `prepare` as well; one with something to say in the report has `facts() -> dict`, of the last
mining, whose whole numbers are of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from embedtrain.mining.records import Candidates, MiningData


class Prepared(Protocol):
    """A filter that is told of all candidates before the first is judged."""

    def prepare(self, data: MiningData, blocks: Sequence[Candidates]) -> None:
        """Every rank calls it once per mining, with all its candidates (also with none), after the filters before it acted.

        Afterwards the filter knows each candidate that is `kept` in a block.
        """
        ...
