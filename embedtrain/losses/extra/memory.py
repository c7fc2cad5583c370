"""A memory of past documents: more negatives than fit in a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from embedtrain.errors import ConfigError
from embedtrain.losses.extra import with_documents
from embedtrain.types import NO_OWNER, EmbeddingBatch


class CrossBatchMemory(nn.Module):
    """Contrasts with the documents of past batches as well, as they were embedded then, without gradient.

    Wang et al. 2020 (arXiv:1912.06798): embeddings drift slowly, so old ones still serve. All ranks remember all ranks'
    documents alike. Ids are remembered too, so a document that answers a query of today is no negative of it. The
    memory is in checkpoints.
    Cost: that of InfoNCE with `size` more documents, whose vectors are kept; nothing is encoded again.

    size         documents remembered, the newest
    start_step   steps before the memory is used and filled: at first embeddings move fast
    """

    remembers_dim = True  # cannot stand inside a loss that changes the size of embeddings

    values: Tensor
    ids: Tensor
    filled: Tensor

    def __init__(self, *, size: int, start_step: int = 0):
        super().__init__()
        if size < 1:
            raise ConfigError(f"loss.extra.memory.size: expected at least 1 document, got {size}.")
        self.size = size
        self.start_step = start_step
        self.register_buffer("values", torch.zeros(size, 0))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def prepare(self, *, embedding_dim: int, teachers: Mapping[str, int]) -> None:
        self.values = self.values.new_zeros(self.size, embedding_dim)

    def forward(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        documents = batch.documents.values
        if batch.step < self.start_step:
            return batch
        count = int(self.filled)
        past, ids = self.values[:count].clone(), self.ids[:count].clone()
        self._remember(documents.detach(), batch.relation.document_ids)
        return with_documents(batch, past, ids, torch.full_like(ids, NO_OWNER))

    def _remember(self, documents: Tensor, ids: Tensor) -> None:
        """The newest first; what does not fit any more is forgotten."""
        count = int(self.filled)
        newest = torch.cat([documents.to(self.values), self.values[:count]])[: self.size]
        numbers = torch.cat([ids, self.ids[:count]])[: self.size]
        self.values[: len(newest)] = newest
        self.ids[: len(numbers)] = numbers
        self.filled.fill_(len(newest))
