"""Whether a loss gets what it reads: asked at `check` and before the first step, of the encoder, the teachers and the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from embedtrain.errors import ConfigError, DataError
from embedtrain.losses import prepare
from embedtrain.losses.wrappers.routed import Routed
from embedtrain.types import Needs, TrainingExample, needs_of, table_of


def fit(loss: nn.Module, encoder: Any, *, teachers: Mapping[str, int], sources: Sequence[str]) -> None:
    """Makes the encoder give the layers that the loss reads, and tells the loss the sizes of the run.

    `encoder`: an `Encoder`. `teachers`: dimensions of each, by name. `sources`: names of the training sources. Raises
    ConfigError, with key and remedy, for whatever the loss reads and the run does not have.
    """
    needs = needs_of(loss)
    missing = [name for name in needs.views if name not in encoder.views]
    if missing:
        raise ConfigError(
            f"the loss reads the view {', '.join(missing)}, but the encoder makes {', '.join(encoder.views) or 'no views'}. Add "
            f"it: '+pooling@encoder.views.{missing[0]}=<pooling>'."
        )
    missing = [name for name in needs.teachers if name not in teachers]
    if missing:
        raise ConfigError(
            f"the loss reads the teacher {', '.join(missing)}, but the run has {', '.join(teachers) or 'none'}. Add it: "
            f"'+teacher@teachers.{missing[0]}=online' teachers.{missing[0]}.model=<name or folder>."
        )
    _refuse_other_kind(needs, encoder.pooling)
    for module in loss.modules():
        if isinstance(module, Routed):
            module.refuse_unrouted(sources)
    encoder.read_layers(needs.layers)
    prepare(loss, embedding_dim=encoder.embedding_dim, teachers=teachers)


def _refuse_other_kind(needs: Needs, pooling: nn.Module) -> None:
    """Token vectors and Gaussians have losses that others cannot stand in for."""
    gaussian = hasattr(pooling, "search_vectors")
    if needs.embedding == "multi_vector" and not getattr(pooling, "multi_vector", False):
        raise ConfigError(
            f"loss=token_groups needs one vector per token, but {type(pooling).__name__} makes one per text. Use "
            "pooling=multi_vector, or loss=matryoshka."
        )
    if needs.embedding == "gaussian" and not gaussian:
        raise ConfigError(
            f"loss=gaussian compares normal distributions, but {type(pooling).__name__} makes none. Use pooling=gaussian."
        )
    if gaussian and needs.embedding != "gaussian":
        raise ConfigError(
            "pooling=gaussian makes means and variances, whose inner products mean nothing. Use loss=gaussian, with your "
            "loss inside: loss@loss.inner=<name>."
        )


def refuse_bare_rows(loss: nn.Module, examples: Iterable[TrainingExample], *, scored: bool = False) -> None:
    """Raises DataError, naming the row, where a loss needs a score or a label that a row of its source does not have.

    `scored`: a miner's rescorer will give the scores.
    """
    needs: dict[str, Needs] = {}
    for example in examples:
        if example.source not in needs:
            needs[example.source] = needs_for(loss, example.source)
        where = example.row or example.source
        if needs[example.source].scores and example.scores is None and not scored:
            raise DataError(
                f"{where}: the loss learns from scores, and this row has none. Give each row of source "
                f"{example.source!r} scores (columns: {{scores: <column>}}), one for each positive and negative, or leave "
                "the source to another loss (loss=routed)."
            )
        if needs[example.source].labels and example.label is None:
            raise DataError(
                f"{where}: the loss reads the class of each row, and this row has none. Give each row of source "
                f"{example.source!r} a label (columns: {{label: <column>}}), or leave the source to another loss (loss=routed)."
            )


def needs_for(loss: nn.Module, source: str) -> Needs:
    """What a loss reads of the rows of one source: of what is routed, that source's part alone."""
    if isinstance(loss, Routed):
        source = table_of(source)
        chosen = loss.losses[source] if source in loss.losses else loss.default  # noqa: SIM401 (a ModuleDict has no get)
        return Needs() if chosen is None else needs_for(chosen, source)
    needs: Needs = getattr(loss, "needs", Needs())
    for child in loss.children():
        needs |= needs_for(child, source)
    return needs
