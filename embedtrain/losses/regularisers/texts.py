"""The vectors that a regulariser looks at."""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

from embedtrain.errors import ConfigError
from embedtrain.types import NO_OWNER, EmbeddingBatch, Needs

Documents = Literal["all", "positives"]


def needs_view(view: str | None) -> Needs:
    """What a loss needs that reads `view`: `layer_<n>` is a layer of the backbone, any other name a head of the encoder."""
    if view is None:
        return Needs()
    layer = re.fullmatch(r"layer_(\d+)", view)
    return Needs(layers=(int(layer[1]),)) if layer else Needs(views=(view,))


def viewed(batch: EmbeddingBatch, view: str | None) -> EmbeddingBatch:
    """The batch as a regulariser sees it. Raises ConfigError where a text has one vector per token."""
    seen = batch if view is None else batch.view(view)
    if seen.queries.offsets is not None or seen.documents.offsets is not None:
        raise ConfigError(
            f"loss.view: expected one vector per text, but {view or 'the embedding'!r} has one per token. Name a view that "
            "has one."
        )
    return seen


def check_documents(documents: str) -> None:
    if documents not in ("all", "positives"):
        raise ConfigError(f"loss.documents: expected all or positives, got {documents!r}.")


def document_vectors(batch: EmbeddingBatch, documents: Documents) -> Tensor:
    """Of all documents, or of those that a query brought as its positive, [D, E]."""
    vectors = batch.documents.values
    return vectors if documents == "all" else vectors[positives(batch)]


def positives(batch: EmbeddingBatch) -> Tensor:
    """The documents that a query brought as its positive, [P]."""
    relation = batch.relation
    return torch.nonzero(relation.is_positive & (relation.owner != NO_OWNER)).flatten()
