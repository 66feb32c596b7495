"""Pooling patch features of clips of different length into one vector; padded patches never count."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bridle.grid import PatchGrid

Pooling = Literal["mean", "time", "statistics"]


def time_moments(features: Tensor, grid: PatchGrid, valid_steps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the valid time steps of each clip.

    Args:
        features: (B, N, D) in the order of ``grid``.
        grid: N patches.
        valid_steps: (B,) valid time steps of each clip, at least 1.

    Returns:
        Both (B, height * width, D) float32; the deviation is at least 1e-6.
    """
    steps = features.float().reshape(len(features), grid.time, grid.patches_per_step, -1)
    counts = torch.arange(grid.time, device=features.device) < valid_steps.to(features.device)[:, None]
    weight = counts.float() / counts.sum(1, keepdim=True)
    mean = torch.einsum("btpd,bt->bpd", steps, weight)
    variance = torch.einsum("btpd,bt->bpd", (steps - mean[:, None]).square(), weight)
    return mean, variance.clamp_min(1e-12).sqrt()  # the root of 0 has no gradient


def pool_moments(mean: Tensor, deviation: Tensor, pooling: Pooling) -> Tensor:
    """One vector for each clip from its :func:`time_moments`.

    Args:
        mean: (B, height * width, D).
        deviation: as ``mean``.
        pooling: ``"mean"`` over all patches; ``"time"`` over time only, so that height and width (the frequency axis of
            audio) are kept; ``"statistics"`` is ``"time"`` and the deviation over time.

    Returns:
        (B, D) for ``"mean"``, (B, height * width * D) for ``"time"``, (B, height * width * 2D) for ``"statistics"``.
    """
    if pooling == "mean":
        return mean.mean(1)
    return (mean if pooling == "time" else torch.cat([mean, deviation], dim=-1)).flatten(1)


def pool(features: Tensor, grid: PatchGrid, valid_steps: Tensor, pooling: Pooling) -> Tensor:
    """:func:`pool_moments` of :func:`time_moments`: (B, N, D) patch features to one vector for each clip."""
    return pool_moments(*time_moments(features, grid, valid_steps), pooling)


def pooled_width(width: int, patches_per_step: int, pooling: Pooling) -> int:
    """Length of a pooled vector of features of ``width``."""
    return width if pooling == "mean" else width * patches_per_step * (2 if pooling == "statistics" else 1)
