"""What a merge says: scores of the inputs beside the merged model, and the way of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from embedtrain.evaluation.comparison import interval, percent, result_size, signed
from embedtrain.evaluation.result import EvaluationResult
from embedtrain.evaluation.statistics import compare
from embedtrain.merging.methods.greedy_soup import Trial
from embedtrain.merging.methods.self_positioning import Position

Results = Mapping[str, EvaluationResult]


def scores_table(
    inputs: Mapping[str, Results], merged: Results, *, name: str, resamples: int = 2000, seed: int = 0
) -> str:
    """Every metric x 100 of each input and of the merged model, and how far this is ahead of each input in the primary one.

    held_out (829 queries, 829 documents)
                ndcg@10 *  mrr@10  recall@10   merged is ahead by  95 % interval
      runs/a        71.23   64.51      88.90                +0.41  [-0.20, +1.02]
      runs/b        70.80   64.02      88.54                +0.84  [+0.11, +1.60]
      merged        71.64   64.95      89.02
    """
    blocks = []
    for evaluator, result in merged.items():
        header = ["", *(m + (" *" if m == result.primary else "") for m in result.metrics)]
        rows = [[*header, f"{name} is ahead by", "95 % interval"]]
        for model, results in inputs.items():
            known = results[evaluator]
            found = {d.metric: d for d in compare(known, result, resamples=resamples, seed=seed)}[result.primary]
            figures = [percent(known.metrics[metric]) for metric in result.metrics]
            rows.append([model, *figures, signed(found.change), interval(found) or "-"])
        rows.append([name, *(percent(value) for value in result.metrics.values()), "", ""])
        blocks.append(f"{evaluator}{result_size(result)}\n{_aligned(rows)}")
    return "\n".join(blocks)


def soup_path(path: Sequence[Trial], names: Sequence[str]) -> str:
    """What was tried, in order."""
    rows = [["", "score", ""]]
    for number, trial in enumerate(path):
        added = names[trial.models[-1]]
        rows.append(
            [added if number == 0 else f"+ {added}", percent(trial.score), "taken" if trial.taken else "left out"]
        )
    return _aligned(rows)


def position_path(path: Sequence[Position], names: Sequence[str], *, lines: int = 10) -> str:
    """Some of the steps, the first and the last among them; a is the weight of each model, c its task vector's coefficient."""
    stride = max(1, -(-(len(path) - 1) // lines))
    short = [PurePath(name).name for name in names]
    rows = [["step", "loss", "lambda", *(f"a {name}" for name in short), *(f"c {name}" for name in short)]]
    for step, at in enumerate(path):
        if step % stride == 0 or step == len(path) - 1:
            loss = "-" if at.loss is None else f"{at.loss:.4f}"
            numbers = [f"{value:.4f}" for value in (at.lambda_, *at.weights, *at.coefficients)]
            rows.append([str(step), loss, *numbers])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
