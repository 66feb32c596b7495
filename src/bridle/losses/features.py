"""Predicting features and patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine_distance(predicted: Tensor, target: Tensor, valid: Tensor | None, eps: float = 1e-6) -> Tensor:
    """``sum(1 - cos(predicted, target))`` over patches (BEATs, arXiv 2212.09058, eq. 6). The norms are at least ``eps``.

    Args:
        predicted: (B, N, D).
        target: (B, N, D); no gradient flows into it.
        valid: (B, N) bool or None.
        eps: smallest norm.

    Returns:
        Scalar float32 sum.
    """
    each = 1.0 - F.cosine_similarity(predicted.float(), target.detach().float(), dim=-1, eps=eps)
    return (each if valid is None else each * valid).sum()


def patch_regression(predicted: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """Squared error per patch, mean over its values, summed over patches (MAE, arXiv 2111.06377).

    Args:
        predicted: (B, M, P).
        target: (B, M, P), usually normalised patches.
        valid: (B, M) bool or None.

    Returns:
        Scalar float32 sum.
    """
    each = (predicted.float() - target.float()).square().mean(-1)
    return (each if valid is None else each * valid).sum()
