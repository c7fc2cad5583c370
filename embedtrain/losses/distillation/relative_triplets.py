"""Relative triplets: of two pairs of texts, the student finds that one more similar which the teacher does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.attach import attach
from embedtrain.losses.distillation.texts import KINDS, all_vectors, refuse_unknown_kinds, texts_of
from embedtrain.types import EmbeddingBatch, LossOutput, Needs


class RelativeTriplets(nn.Module):
    """Of two pairs of texts, the one that the teacher finds more similar is so for the student.

        mean over two pairs (a, b) of  max(0, s_b - s_a + margin)  where t_a > t_b

    a and b are pairs of texts of the batch, t_a the teacher's similarity of such a pair and s_a the student's; the mean is
    over all C(P, 2) of the P = C(M, 2) pairs of M texts. Stella and Jasper (arXiv:2412.19048, L_resim), margin 0.015,
    times 20 there. Their code counts two pairs that the teacher finds equal as if one were above; their formula, and this
    class, leave them out. Any number of dimensions on either side. SimilarityMatrix wants the similarities themselves.
    Cost: M^2 log^2 M time and M^2 memory, exact, by sorting (`ordered_hinge`). Pairs of pairs one by one would be M^4, and
    1,000 texts have half a million pairs. Every rank computes the whole batch.

    teacher  a name under `teachers`
    margin   by how much the student must tell the two pairs apart, in units of similarity
    texts    any of queries, positives, negatives: together they are the M texts
    """

    def __init__(self, *, teacher: str = "teacher", margin: float = 0.015, texts: Sequence[str] = KINDS):
        super().__init__()
        refuse_unknown_kinds(texts)
        if margin < 0:
            raise ConfigError(f"loss.margin: expected a number of at least 0, got {margin}.")
        self.teacher = teacher
        self.margin = margin
        self.texts = tuple(texts)
        self.needs = Needs(teachers=(teacher,))

    def forward(self, batch: EmbeddingBatch) -> LossOutput:
        kinds = texts_of(batch, self.texts)
        learnt = all_vectors(batch, kinds)
        with torch.autocast(learnt.device.type, enabled=False):
            s = pair_similarities(learnt)
            t = pair_similarities(all_vectors(batch.teacher(self.teacher), kinds)).detach()
            value, gradient = ordered_hinge(s.detach(), t, self.margin)
            value = attach(value, [gradient], s)
        pairs = max(1, s.numel() * (s.numel() - 1) // 2)
        # Not a sum over queries: every rank has the value of the whole batch, and takes its part of it.
        return LossOutput(value * (batch.num_rows / batch.relation.num_queries / pairs))


def pair_similarities(vectors: Tensor) -> Tensor:
    """The similarity of each pair of M texts, once, [M (M - 1) / 2]."""
    first, second = torch.triu_indices(len(vectors), len(vectors), offset=1, device=vectors.device)
    return (vectors @ vectors.T)[first, second]


def ordered_hinge(s: Tensor, t: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """The sum over (a, b) with t_a > t_b of max(0, s_b - s_a + margin), and its gradient by s [P]. In P log^2 P.

    Number the values of t by size. Of two different numbers, the one that is larger has a 1 at the highest bit in which
    they differ, and they agree above it. So each (a, b) is met at exactly one bit: within a group of equal higher bits, a
    is among those with a 1 and b among those with a 0. There, sorted by s, the b that count for a are the last ones, and
    a running sum gives what they add up to.
    """
    number = torch.unique(t, return_inverse=True)[1]
    size = s.numel()
    # One order of all s_b and all s_a - margin; b counts for a where s_b comes later. Of equal ones s_b comes first: no hinge.
    place = torch.argsort(torch.argsort(torch.cat([s, s - margin]), stable=True))
    value, limit = place[:size], place[size:]
    total, gradient = s.new_zeros((), dtype=torch.float64), torch.zeros_like(s, dtype=torch.float64)
    for bit in range(int(number.max()).bit_length() if size else 0):
        group = (number >> (bit + 1)) * (2 * size)
        above = (number >> bit) % 2 == 1
        a, b = torch.nonzero(above).flatten(), torch.nonzero(~above).flatten()
        a, b = a[torch.argsort(group[a] + limit[a])], b[torch.argsort(group[b] + value[b])]
        keys_a, keys_b = group[a] + limit[a], group[b] + value[b]
        first = torch.searchsorted(keys_b, keys_a)  # b from here on count for a ...
        last = torch.searchsorted(keys_b, group[a] + 2 * size)  # ... to the end of its group
        sums = torch.cat([s.new_zeros(1, dtype=torch.float64), s[b].double().cumsum(0)])
        count = last - first
        total += (sums[last] - sums[first] + count * (margin - s[a].double())).sum()
        gradient[a] -= count
        gradient[b] += torch.searchsorted(keys_a, keys_b) - torch.searchsorted(keys_a, group[b])
    return total.to(s), gradient.to(s)
