"""Predicting classes: cross-entropy and binary cross-entropy with soft targets, one value for each clip."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``- sum over classes of target * log softmax`` of each clip.

    Args:
        logits: (B, C).
        targets: (B, C), each row sums to 1.

    Returns:
        (B,) float32 in nats.
    """
    return -(targets * logits.float().log_softmax(-1)).sum(-1)


def binary_cross_entropy(logits: Tensor, targets: Tensor, positive_weights: Tensor | None = None) -> Tensor:
    """Mean over classes of each clip's binary cross-entropies.

    Args:
        logits: (B, C).
        targets: (B, C) in [0, 1].
        positive_weights: (C,) factors of the terms of present classes; None for 1.

    Returns:
        (B,) float32 in nats.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=positive_weights, reduction="none")
    return each.mean(-1)


def smooth(targets: Tensor, smoothing: float, exclusive: bool) -> Tensor:
    """Label smoothing (arXiv 1512.00567) of targets (B, C): ``(1 - e) y + e / C`` of ``exclusive`` classes, else
    ``(1 - e) y + e / 2``.
    """
    return targets * (1 - smoothing) + smoothing / (targets.shape[-1] if exclusive else 2)
