"""The average of those models that make the average better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedtrain.merging.methods.linear import Linear


@dataclass(frozen=True, kw_only=True)
class GreedySoup:
    """Starts from the best model by a dev set and takes each further one, best first, if the average is then no worse.

        soup = {best};   for each other i by score:   if score(mean(soup + {i})) >= score(mean(soup)): soup += {i}

    Wortsman et al. 2022 (arXiv:2203.05482, recipe 1). The score is the primary metric of the first evaluator, or
    evaluation.primary. Choosing by a set makes its scores too good: keep another one for the last word. Reads no base.
    """

    def of(self, ingredients: Sequence[int], count: int) -> Linear:
        return Linear(weight=[float(number in ingredients) for number in range(count)])


@dataclass(frozen=True)
class Trial:
    """One step: the models (numbers from 0) that were averaged, their score, and whether the soup became that."""

    models: tuple[int, ...]
    score: float
    taken: bool


def greedy(scores: Sequence[float], score_of: Callable[[tuple[int, ...]], float]) -> list[Trial]:
    """The path of the search. `scores`: of each model alone; `score_of` the average of several.

    Of equal models the first one comes first.
    """
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    path = [Trial((order[0],), scores[order[0]], taken=True)]
    soup, best = path[0].models, path[0].score
    for number in order[1:]:
        trial = (*soup, number)
        score = score_of(trial)
        path.append(Trial(trial, score, score >= best))
        if score >= best:
            soup, best = trial, score
    return path
