"""Negative KL divergence of diagonal normals as an inner product (Zamani & Bendersky 2023, arXiv:2304.14522).

    -KL(q || d) = phi_q . phi_d + h(q)
    phi_q = [1, var_q + mean_q^2, mean_q]
    phi_d = [-1/2 sum(log var_d + mean_d^2 / var_d), -1/(2 var_d), mean_d / var_d]

h depends on the query alone and changes no ranking, so an index for inner products serves such texts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def query_vectors(gaussians: Tensor) -> Tensor:
    """phi_q [N, 1 + 2k] of [N, 2k], means then log variances; in its numbers."""
    mean, log_variance = gaussians.chunk(2, dim=1)
    return torch.cat([torch.ones_like(mean[:, :1]), log_variance.exp() + mean**2, mean], dim=1)


def document_vectors(gaussians: Tensor) -> Tensor:
    """phi_d [N, 1 + 2k] of [N, 2k]."""
    mean, log_variance = gaussians.chunk(2, dim=1)
    precision = (-log_variance).exp()
    constant = -0.5 * (log_variance + mean**2 * precision).sum(1, keepdim=True)
    return torch.cat([constant, -0.5 * precision, mean * precision], dim=1)
