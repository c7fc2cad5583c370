"""Whitening, fitted after training: embeddings without a mean, of equal variance in every direction.

    x' = (x - mean) U diag(s^-1/2),   covariance = U diag(s) U^T,   the directions of the largest s first

Su et al. 2021 (BERT-whitening, arXiv:2103.15316), Huang et al. 2021 (WhiteningBERT, arXiv:2104.01767). It is linear, so it
becomes the encoder's projection (together with the one that was there), and a plain Dense in the exported model. Keeping
the first directions shortens the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedtrain.encoder import Encoder
from embedtrain.errors import ConfigError, DataError

# A direction that varies less than this part of the largest is noise, and would be blown up.
_LEAST_SHARE = 1e-9


@torch.no_grad()
def fit_whitening(encoder: Encoder, texts: Sequence[str], dim: int) -> None:
    """Give `encoder` a projection that whitens its embeddings of `texts`, to `dim` dimensions.

    Fitted in fp64 on the vectors before the norm; texts are queries and documents by turns. Do it once, at the end: a
    trained projection is folded in.

    Raises ConfigError as `check_whitening`, DataError for texts too few or too alike.
    """
    check_whitening(encoder, dim)
    mean, matrix = whitening(_vectors(encoder, texts), dim)
    before = encoder.projection
    after = nn.Linear(encoder.embedding_dim if before is None else before.in_features, dim)
    weight, bias = matrix.T, -mean @ matrix
    if before is not None:
        weight, bias = weight @ before.weight.double().cpu(), bias + weight @ before.bias.double().cpu()
    after.weight.copy_(weight)
    after.bias.copy_(bias)
    encoder.projection = after.to(encoder.device)
    encoder.embedding_dim = dim


def check_whitening(encoder: Encoder, dim: int) -> None:
    """Raises ConfigError for an encoder that no linear layer can follow, or of fewer dimensions than are wanted."""
    if encoder.multi_vector or getattr(encoder.pooling, "as_is", False):
        raise ConfigError(
            f"export.whiten_to={dim}: {type(encoder.pooling).__name__} does not give one plain vector per text. Set it to null."
        )
    if dim > encoder.embedding_dim:
        raise ConfigError(
            f"export.whiten_to={dim}: the embedding has {encoder.embedding_dim} dimensions. Use at most that many."
        )


def whitening(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(mean [E], matrix [E, dim]) of the whitening of `vectors` [N, E], fp64."""
    if len(vectors) <= dim:
        raise DataError(f"export.whiten_to={dim}: needs more texts than dimensions, and the run has {len(vectors)}.")
    mean = vectors.mean(0)
    centred = vectors - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(vectors))
    variances, directions = variances.flip(0)[:dim], directions.flip(1)[:, :dim]
    usable = int((variances > _LEAST_SHARE * variances[0]).sum())
    if usable < dim:
        raise DataError(
            f"export.whiten_to={dim}: the texts of the run vary in {usable} directions only. Use at most that many."
        )
    return mean, directions / variances.sqrt()


def _vectors(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Embeddings of `texts` before the norm, [N, E] fp64 on the CPU."""
    normalize, encoder.unit_length = encoder.unit_length, False
    try:
        parts = [encoder.encode(texts[0::2], role="query"), encoder.encode(texts[1::2], role="document")]
    finally:
        encoder.unit_length = normalize
    return torch.cat(parts).double()
