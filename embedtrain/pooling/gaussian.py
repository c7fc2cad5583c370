"""Gaussian pooling (Zamani & Bendersky 2023, arXiv:2304.14522): a text is a normal distribution and not a point."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedtrain.gaussian import document_vectors, query_vectors
from embedtrain.types import RaggedTokens, Role

_LEAST_VARIANCE = 1e-6  # softplus falls to 0 in fp32 below -104, and a variance of 0 has no logarithm


class GaussianPooling(nn.Module):
    """mean = A h_first + a, variance = softplus(B h_last + b), of k dimensions without correlations.

    Given as k means, then k logarithms of variances: [N, 2k]. Texts end in an end-of-text token. The paper adds two tokens
    to the vocabulary, [CLS] and [VAR], and reads the variance at the second; here the last token (SEP, EOS) does its work
    and nothing is added. The variance starts at 1 whatever the text.

    dim           k; a vector for search has 2k + 1 numbers
    hidden_size   of the backbone; supplied by the program.
    """

    as_is = True
    reads_last_token = True

    def __init__(self, *, hidden_size: int, dim: int = 256) -> None:
        super().__init__()
        self.dim = dim
        self.output_dim = 2 * dim
        self.search_dim = 2 * dim + 1
        self.mean = nn.Linear(hidden_size, dim)
        self.variance = nn.Linear(hidden_size, dim)
        nn.init.zeros_(self.variance.weight)
        nn.init.constant_(self.variance.bias, 0.5413248546129181)  # softplus of it is 1

    def forward(self, hidden: Tensor, tokens: RaggedTokens) -> Tensor:
        first = hidden[tokens.offsets[:-1].to(hidden.device, non_blocking=True)].float()
        last = hidden[(tokens.offsets[1:] - 1).to(hidden.device, non_blocking=True)].float()
        variance = F.softplus(self.variance(last).float()) + _LEAST_VARIANCE
        return torch.cat([self.mean(first).float(), variance.log()], dim=1)

    @staticmethod
    def search_vectors(gaussians: Tensor, role: Role) -> Tensor:
        """[N, 2k + 1] of [N, 2k]: their inner products rank documents by -KL(query || document)."""
        return query_vectors(gaussians) if role == "query" else document_vectors(gaussians)
