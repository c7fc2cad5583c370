"""Losses: functions of an `EmbeddingBatch` that know no model, no ranks and no log.

    EmbeddingBatch --RelationReader: which pairs are no negatives--> contrast: tiles of a space, reduced row by row, gradients
                   --row formula: a few numbers per row--> loss

Reading order: infonce (what one configures), formulas (what is computed), contrast (how), similarity (between what), relation,
modifiers and extra (which negatives, and how much each counts); divergence (two softmaxes, in the same way); then the
families: wrappers, distillation, ranking, regularisers. A new softmax loss is a row formula; a new rule about negatives is a
modifier; a new way to compare texts is a space; anything else implements `embedtrain.types.Loss`. fit is where a loss
and a run meet.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def prepare(loss: nn.Module, *, embedding_dim: int, teachers: Mapping[str, int]) -> None:
    """Tells a loss, and every loss inside it, the sizes of this run; before its parameters go to an optimizer.

    A loss that must know has a method `prepare(embedding_dim, teachers)`: it makes what depends on sizes (a projection, a
    memory), and raises ConfigError for what does not fit. `teachers`: dimensions of each teacher's embeddings, by name.
    """
    for module in list(loss.modules()):
        hook = getattr(module, "prepare", None)
        if hook is not None:
            hook(embedding_dim=embedding_dim, teachers=teachers)
