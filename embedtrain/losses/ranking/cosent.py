"""CoSENT: pairs with a higher score must be more similar than pairs with a lower one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.formulas import Pairs
from embedtrain.losses.precision import in_full_precision
from embedtrain.losses.ranking.pairs import ScoredPairs, pair_similarity, scored_pairs
from embedtrain.losses.shares import fraction
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class CoSENT(nn.Module):
    """Puts the similarities of all pairs of the batch in the order of their scores.

        log( 1 + sum over pairs h, l with score(h) > score(l) of  e^((sim(l) - sim(h)) / t) )

    Su 2022, Huang et al. 2024 (IEEE TASLP, doi 10.1109/TASLP.2024.3402087), as Conan-embedding (arXiv:2408.15710) has it.
    Only the order of the scores counts, so that any scale will do. AnglE is this with another similarity; RankNet
    compares the candidates of one query alone and sums logarithms, where this is the logarithm of one sum.
    Cost: D similarities and a sort; memory linear in the batch. The logarithm joins all ranks, so each computes it in full.

    temperature  divides the similarity; 0.05 is the scale 20 of sentence-transformers
    """

    needs = Needs(scores=True)

    def __init__(self, *, temperature: float = 0.05):
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"loss.temperature: expected a number above 0, got {temperature}. Common: 0.05.")
        self.temperature = temperature

    @in_full_precision
    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        pairs = scored_pairs(batch)
        logits = self.similarity(batch, pairs) / self.temperature
        share = fraction(batch)
        squashed = logits.new_tensor(share if pairs.squashed else 0.0)
        return LossOutput(order_loss(logits, pairs.score) * share, {"squashed": squashed})

    def similarity(self, batch: EmbeddingBatch, pairs: ScoredPairs) -> Tensor:
        """Of each pair, [P]."""
        return pair_similarity(batch, pairs.query, pairs.document)


def order_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """log(1 + sum of e^(logit of the lower - logit of the higher)) over all pairs of unequal score; 0 where there are none.

    By levels of score: the sum over the pairs of levels l < h is e^lower(l) times e^-higher(h), so running sums from the
    top level down replace the P x P terms.
    """
    levels, level = torch.unique(scores, return_inverse=True)
    of_level = Pairs(level, torch.bincount(level, minlength=len(levels)))
    lower, higher = of_level.logsumexp(logits), of_level.logsumexp(-logits)
    above = torch.logcumsumexp(higher.flip(0), 0).flip(0)  # this level and all above it
    return torch.logsumexp(torch.cat([logits.new_zeros(1), lower[:-1] + above[1:]]), 0)
