"""Before anything is learnt from scores: do they tell documents apart? Asked of rows at `check`, of the first batch in a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from embedtrain import distributed
from embedtrain.errors import ConfigError, DataError
from embedtrain.losses.distillation.spread import ScoresRead, Spread, score_spread, scores_read
from embedtrain.types import Teacher, TokenBatch, TrainingExample, table_of, text_id


def refuse_squashed_rows(loss: nn.Module, examples: Iterable[TrainingExample]) -> None:
    """Looks at the scores of some rows, where the loss learns from scores of rows.

    Raises DataError where a row has none, ConfigError where they hardly differ among a query's documents.
    """
    spread: dict[ScoresRead, Spread] = {}
    for example in examples:
        for read in scores_read(loss, {text_id(table_of(example.source))}):
            if read.teacher is not None:
                continue
            if example.scores is None:
                raise DataError(
                    f"{example.row or example.source}: the loss learns from scores of the rows (loss.teacher: null), and this "
                    "row has none. Give each row `scores`, leave the source out, or name a teacher under `teachers`."
                )
            own = score_spread(torch.tensor(example.scores), torch.zeros(len(example.scores), dtype=torch.int64))
            spread[read] = spread.get(read, Spread()) + own
    for read, found in spread.items():
        _refuse([read], found)


def refuse_squashed_batch(loss: nn.Module, teachers: Mapping[str, Teacher], batches: Sequence[TokenBatch]) -> None:
    """Looks at all scores that the loss learns from in one step, on all ranks. Raises ConfigError, on all of them."""
    own_sources = {number for batch in batches for number in _sources(batch)}
    reads = list(scores_read(loss, set().union(*distributed.gather_objects(own_sources))))
    for name in {read.teacher for read in reads}:
        own = Spread()
        for batch in batches:
            own += score_spread(_scores(name, teachers, batch), batch.relation.owner)
        spread = sum(distributed.gather_objects(own), Spread())
        _refuse([read for read in reads if read.teacher == name], spread)


def _sources(batch: TokenBatch) -> list[int]:
    sources = batch.relation.sources
    return [] if sources is None else torch.unique(sources).tolist()


def _scores(name: str | None, teachers: Mapping[str, Teacher], batch: TokenBatch) -> Tensor:
    """A teacher's scores of each document for the query that brought it, [D], CPU."""
    if name is not None:
        queries, documents = teachers[name].embed(batch.teachers[name])
        return (queries[batch.relation.owner.to(queries.device)] * documents).sum(1).cpu()
    if batch.relation.scores is None:
        return torch.full((batch.relation.num_documents,), torch.nan)
    return batch.relation.scores


def _refuse(reads: Iterable[ScoresRead], spread: Spread) -> None:
    for read in reads:
        problem = read.problem(spread.mean)
        if problem is not None:
            raise ConfigError(f"loss: {problem}")
