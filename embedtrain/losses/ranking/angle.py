"""AnglE: CoSENT by the angle between embeddings read as complex numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from embedtrain.losses.ranking.cosent import CoSENT
from embedtrain.losses.ranking.pairs import ScoredPairs, refuse_multi_vector
from embedtrain.types import EmbeddingBatch


class AnglE(CoSENT):
    """CoSENT with a similarity that does not saturate: the quotient of two embeddings as complex vectors.

        log( 1 + sum over pairs h, l with score(h) > score(l) of  e^((angle(l) - angle(h)) / t) )
        angle(q, d) = | sum of real and imaginary parts of q / d, lengths taken out |
                    = | (a.c + b.d' + b.c - a.d') / (|q| |d|) |   for q = a + ib,  d = c + id'

    Li and Li 2023 (arXiv:2309.12871). The first half of an embedding is real, the second imaginary.
    The paper prints the exponent of equation 3 with the other sign, as for an angle that shrinks as texts grow alike; the
    authors' code and sentence-transformers have it as here, and so it must be, since `angle` is 1 for equal texts.
    The paper adds CoSENT and InfoNCE to it; so does `loss=weighted_sum`: weights 1 (CoSENT), 1 (InfoNCE) and 0.02 (this),
    all at temperature 0.05, are those of the authors' STS-B example, 1, 20 and 1 an earlier one.
    Cost: as CoSENT, D similarities and a sort; memory linear in the batch.

    temperature  divides the angle; 0.05 in the authors' later examples and sentence-transformers, 1 in their code's default
    """

    def similarity(self, batch: EmbeddingBatch, pairs: ScoredPairs) -> Tensor:
        refuse_multi_vector(batch)
        queries = F.normalize(batch.queries.values, dim=1)[pairs.query]
        documents = F.normalize(batch.documents.values, dim=1)[pairs.document]
        return complex_quotient(queries, documents).abs()


def complex_quotient(x: Tensor, y: Tensor) -> Tensor:
    """Real plus imaginary part of x / y, summed over complex dimensions, for unit vectors [P, E]; an odd E gets a zero."""
    padding = (0, x.shape[1] % 2)
    a, b = F.pad(x, padding).chunk(2, dim=1)
    c, d = F.pad(y, padding).chunk(2, dim=1)
    return torch.sum(a * c + b * d + b * c - a * d, dim=1)
