"""The weighted average of the weights: model soup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from embedtrain.merging.methods.base import PerModel, per_model, shares, weighted_sum


@dataclass(frozen=True, kw_only=True)
class Linear:
    """The weighted average of the models.

        sum over i of w_i theta_i / sum over i of w_i

    Wortsman et al. 2022 (arXiv:2203.05482, uniform soup); EmbeddingGemma (arXiv:2509.20354) averages runs of different
    mixtures so, KaLM and Granite their checkpoints. Reads no base.

    weight     of each model
    normalize  divide by the sum of the weights
    """

    weight: PerModel = 1.0
    normalize: bool = True

    def __call__(self, name: str, models: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
        count = len(models)
        return weighted_sum(
            models, shares(self.weight, count) if self.normalize else per_model(self.weight, count, "weight")
        )
