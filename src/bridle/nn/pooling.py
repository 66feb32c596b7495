"""Pooling patch features of clips of different length into one vector; padded patches never count."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bridle.grid import PatchGrid

Pooling = Literal["mean", "time"]


def pool(features: Tensor, grid: PatchGrid, valid_steps: Tensor, pooling: Pooling) -> Tensor:
    """Mean over the valid patches of each clip.

    Args:
        features: (B, N, D) in the order of ``grid``.
        grid: N patches.
        valid_steps: (B,) valid time steps of each clip.
        pooling: ``"mean"`` over all patches, ``"time"`` over time only: height and width (the frequency axis of
            audio) are kept.

    Returns:
        (B, D) for ``"mean"``, (B, height * width * D) for ``"time"``.
    """
    steps = features.reshape(len(features), grid.time, grid.patches_per_step, -1)
    counts = torch.arange(grid.time, device=features.device) < valid_steps.to(features.device)[:, None]
    weight = counts.to(features.dtype) / counts.sum(1, keepdim=True)
    kept = torch.einsum("btpd,bt->bpd", steps, weight)
    return kept.mean(1) if pooling == "mean" else kept.flatten(1)
