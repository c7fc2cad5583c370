"""Losses: functions of an `EmbeddingBatch` that know no model, no ranks and no log.

    EmbeddingBatch --RelationReader: which pairs are no negatives--> contrast: blocks of logits, log-sum-exp, gradients
                   --row formula: a few numbers per row--> loss

Reading order: infonce (what one configures), formulas (what is computed), contrast (how), relation and modifiers (what
enters the denominator), matryoshka (a wrapper). A new softmax loss is a row formula; a new rule about negatives is a tile
modifier; anything else implements `embedtrain.types.Loss`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from embedtrain.errors import ConfigError
from embedtrain.types import needs_of


def prepare(loss: nn.Module, *, embedding_dim: int, teachers: Mapping[str, int]) -> None:
    """Tells a loss, and every loss inside it, the sizes of this run; before its parameters go to an optimizer.

    A loss that must know has a method `prepare(embedding_dim, teachers)`: it makes what depends on sizes (a projection, a
    memory), and raises ConfigError for what does not fit. `teachers`: dimensions of each teacher's embeddings, by name.
    """
    for name in needs_of(loss).teachers:
        if name not in teachers:
            raise ConfigError(
                f"teachers.{name}: the loss reads a teacher of this name, and there is none (there are: "
                f"{', '.join(teachers) or 'none'}). Add it: teacher@teachers.{name}=online teachers.{name}.model=<folder or name>"
            )
    for module in list(loss.modules()):
        hook = getattr(module, "prepare", None)
        if hook is not None:
            hook(embedding_dim=embedding_dim, teachers=teachers)
