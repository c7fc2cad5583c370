"""The words of ragged texts, picked out of their tokens and padded: what the decoders work on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embedtrain.objectives.masking import count
from embedtrain.types import NO_TARGET, RaggedTokens


@dataclass(frozen=True)
class Words:
    """The words of N texts, at most U in one."""

    ids: Tensor  # [M], all words of all texts
    places: Tensor  # [M], where they lie in the flat run of tokens
    positions: Tensor  # [M], where they lie in their text
    present: Tensor  # [N, U] bool: text n has a word u

    @classmethod
    def of(cls, labels: RaggedTokens) -> Words:
        """`labels`: an id at the place of each word, NO_TARGET at the others."""
        device = labels.ids.device
        places = (labels.ids != NO_TARGET).nonzero().flatten()
        counts = count(RaggedTokens(labels.ids.cpu(), labels.offsets, labels.spans))
        first = torch.repeat_interleave(labels.offsets[:-1], counts).to(device)
        present = torch.arange(int(counts.max())) < counts[:, None]
        return cls(labels.ids[places], places, places - first, present.to(device))

    @property
    def counts(self) -> list[int]:
        """Words of each text, [N]."""
        return self.present.sum(1).tolist()

    def pad(self, values: Tensor) -> Tensor:
        """[M, H] -> [N, U, H], zeros where there is no word."""
        return values.new_zeros(*self.present.shape, values.shape[-1]).index_put((self.present,), values)

    def flat(self, padded: Tensor) -> Tensor:
        """[N, U, H] -> [M, H]."""
        return padded[self.present]
