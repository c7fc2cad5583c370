"""Candidates of the query's own class."""

from __future__ import annotations

import torch
from torch import Tensor

from embedtrain.mining.records import NO_DOCUMENT, Candidates
from embedtrain.types import NO_LABEL


class OwnClass:
    """Takes out candidates of the query's own class, where both are known: they answer as its positive does.

    The same rule as losses/modifiers/same_class.py, before training in place of in it.
    """

    def __call__(self, candidates: Candidates) -> Tensor:
        documents = candidates.documents.numpy()
        query = torch.from_numpy(candidates.data.query_labels[candidates.queries])[:, None]
        document = torch.from_numpy(candidates.data.document_labels[documents])
        own = (query == document) & (query != NO_LABEL)
        return ~own & (candidates.documents != NO_DOCUMENT)
