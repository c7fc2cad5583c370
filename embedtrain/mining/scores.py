"""Scores as filters and draws read them: in fp64, finite, and of whom they are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from embedtrain.errors import DataError
from embedtrain.mining.records import Candidates

Against = Literal["lowest", "highest", "mean"]


def finite_scores(candidates: Candidates) -> Tensor:
    """[Q, M] fp64. What is out already (`kept`) may have none, NaN: no rescorer is asked about it.

    Raises DataError naming query and document of a kept candidate whose score is not finite: NaN is neither below nor above a
    limit, and would pass one filter and fail another.
    """
    wrong = ~torch.isfinite(candidates.scores) & candidates.kept
    if wrong.any():
        row, column = (int(place) for place in torch.nonzero(wrong)[0])
        _refuse(
            candidates, row, int(candidates.documents[row, column]), candidates.scores[row, column], "candidate", wrong
        )
    return candidates.scores.double()


def positive_score(candidates: Candidates, against: Against) -> Tensor:
    """[Q] fp64: the lowest, highest or mean score of a positive of each query. Raises DataError for one that is not finite."""
    wrong = ~torch.isfinite(candidates.positive_scores)
    if wrong.any():
        place = int(torch.nonzero(wrong)[0])
        row = int(torch.searchsorted(candidates.positive_offsets, place, right=True)) - 1
        number = place - int(candidates.positive_offsets[row])
        document = int(candidates.data.positives_of(int(candidates.queries[row]))[number])
        _refuse(candidates, row, document, candidates.positive_scores[place], "positive", wrong)
    found: Tensor = getattr(candidates, f"{against}_positive")
    return found.double()


def share_of(score: Tensor, share: float) -> Tensor:
    """`share` * score, and as far below a negative score: score - (1 - share) * |score|.

    >>> share_of(torch.tensor([2.0, -2.0]), 0.75).tolist()
    [1.5, -2.5]
    """
    return score * torch.where(score < 0, 2 - share, share)


def _refuse(candidates: Candidates, row: int, document: int, score: Tensor, what: str, wrong: Tensor) -> None:
    data, query = candidates.data, int(candidates.queries[row])
    raise DataError(
        f"{data.source}: the score of a {what} is {float(score)}: query {shortened(data.queries[query])!r}, document "
        f"{shortened(data.documents[document])!r} ({int(wrong.sum()):,} such scores of {wrong.numel():,} looked at). Expected "
        "numbers: look for a broken model, or an empty text that it cannot embed."
    )


def shortened(text: str, length: int = 80) -> str:
    """For messages."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
