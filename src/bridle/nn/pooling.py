"""Pooling patch features of clips of different length into one vector; padded patches never count."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bridle.grid import PatchGrid

Pooling = Literal["mean", "time", "statistics", "grid", "grid statistics"]
"""``mean`` over all patches; ``time``: over time only, so that height and width (the frequency axis of audio) are kept;
``statistics``: that and the deviation over time; ``grid``: over time and over each cell of a grid of at most 2 x 2 cells of
height and width; ``grid statistics``: that and the deviation over time, averaged over each cell."""

GRID_CELLS = 2
"""Cells of ``grid`` along height and along width."""


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


def pool_moments(mean: Tensor, deviation: Tensor, grid: PatchGrid, pooling: Pooling) -> Tensor:
    """One vector for each clip from its :func:`time_moments`.

    Args:
        mean: (B, height * width, D).
        deviation: as ``mean``.
        grid: of the patches; its time plays no part.
        pooling: which.

    Returns:
        (B, :func:`pooled_width`).
    """
    if pooling == "mean":
        return mean.mean(1)
    values = torch.cat([mean, deviation], dim=-1) if pooling.endswith("statistics") else mean
    return (_cells(values, grid) if pooling.startswith("grid") else values).flatten(1)


def pool(features: Tensor, grid: PatchGrid, valid_steps: Tensor, pooling: Pooling) -> Tensor:
    """:func:`pool_moments` of :func:`time_moments`: (B, N, D) patch features to one vector for each clip."""
    return pool_moments(*time_moments(features, grid, valid_steps), grid, pooling)


def num_cells(grid: PatchGrid) -> int:
    """Cells of ``grid``."""
    return min(GRID_CELLS, grid.height) * min(GRID_CELLS, grid.width)


def pooled_width(width: int, grid: PatchGrid, pooling: Pooling) -> int:
    """Length of a pooled vector of features of ``width``."""
    places = {"mean": 1, "time": grid.patches_per_step, "grid": num_cells(grid)}
    return width * places[pooling] if pooling in places else 2 * width * places[_PLACES[pooling]]


_PLACES = {"statistics": "time", "grid statistics": "grid"}


def _cells(values: Tensor, grid: PatchGrid) -> Tensor:
    """(B, height * width, X) averaged over each cell: (B, cells, X). Cells of an odd number of patches share the middle one."""
    planes = values.movedim(1, -1).reshape(len(values), -1, grid.height, grid.width)
    size = (min(GRID_CELLS, grid.height), min(GRID_CELLS, grid.width))
    return torch.nn.functional.adaptive_avg_pool2d(planes, size).flatten(2).movedim(1, -1)
