"""Pooling patch features of clips of different length into one vector; padded patches never count."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.grid import PatchGrid

Pooling = Literal["mean", "time", "statistics", "grid", "grid statistics", "grid motion"]
"""``mean`` over all patches; ``time``: over time only, so that height and width (the frequency axis of audio) are kept;
``statistics``: that and the deviation over time; ``grid``: over time and over each cell of a grid of at most 2 x 2 cells of
height and width; ``grid statistics``: that and the deviation over time, averaged over each cell; ``grid motion``: only how much
features change from one time step to the next, averaged over time and over each cell."""

GRID_CELLS = 2
"""Cells of ``grid`` along height and along width."""


def check_pooling(pooling: str, timed: bool) -> None:
    """Refuse what is no pooling, or none of a medium that has no time unless ``timed``.

    Raises:
        ConfigError: it is.
    """
    if pooling not in get_args(Pooling):
        raise ConfigError(f"pooling is {pooling!r}; it must be one of {', '.join(get_args(Pooling))}")
    if pooling == "grid motion" and not timed:
        raise ConfigError("pooling is 'grid motion', and pictures do not move; take grid or mean")


class Moments(NamedTuple):
    """What is known of each place over time, all (B, height * width, D) float32.

    Attributes:
        mean: over the time steps.
        deviation: standard deviation over them, at least 1e-6.
        change: mean absolute difference of consecutive time steps; 0 for a single one.
        first: features of the first time step.
        last: features of the last valid one.
    """

    mean: Tensor
    deviation: Tensor
    change: Tensor
    first: Tensor
    last: Tensor


def time_moments(features: Tensor, grid: PatchGrid, valid_steps: Tensor) -> Moments:
    """Moments over the valid time steps of each clip.

    Args:
        features: (B, N, D) in the order of ``grid``.
        grid: N patches.
        valid_steps: (B,) valid time steps of each clip, at least 1.

    """
    steps = features.float().reshape(len(features), grid.time, grid.patches_per_step, -1)
    counts = torch.arange(grid.time, device=features.device) < valid_steps.to(features.device)[:, None]
    weight = counts.float() / counts.sum(1, keepdim=True)
    mean = torch.einsum("btpd,bt->bpd", steps, weight)
    variance = torch.einsum("btpd,bt->bpd", (steps - mean[:, None]).square(), weight)
    pairs = counts[:, 1:].float() / counts[:, 1:].sum(1, keepdim=True).clamp(min=1)
    change = torch.einsum("btpd,bt->bpd", (steps[:, 1:] - steps[:, :-1]).abs(), pairs)
    last = steps[torch.arange(len(steps), device=steps.device), counts.sum(1) - 1]
    return Moments(mean, variance.clamp_min(1e-12).sqrt(), change, steps[:, 0], last)  # the root of 0 has no gradient


def pool_moments(moments: Moments, grid: PatchGrid, pooling: Pooling) -> Tensor:
    """One vector for each clip.

    Args:
        moments: of B clips.
        grid: of the patches; its time plays no part.
        pooling: which.

    Returns:
        (B, :func:`pooled_width`).
    """
    if pooling == "mean":
        return moments.mean.mean(1)
    if pooling == "grid motion":
        return _cells(moments.change, grid).flatten(1)
    values = torch.cat([moments.mean, moments.deviation], dim=-1) if pooling.endswith("statistics") else moments.mean
    return (_cells(values, grid) if pooling.startswith("grid") else values).flatten(1)


def pool(features: Tensor, grid: PatchGrid, valid_steps: Tensor, pooling: Pooling) -> Tensor:
    """:func:`pool_moments` of :func:`time_moments`: (B, N, D) patch features to one vector for each clip."""
    return pool_moments(time_moments(features, grid, valid_steps), grid, pooling)


def num_cells(grid: PatchGrid) -> int:
    """Cells of ``grid``."""
    return min(GRID_CELLS, grid.height) * min(GRID_CELLS, grid.width)


def pooled_width(width: int, grid: PatchGrid, pooling: Pooling) -> int:
    """Length of a pooled vector of features of ``width``."""
    places = {"mean": 1, "time": grid.patches_per_step, "grid": num_cells(grid), "grid motion": num_cells(grid)}
    return width * places[pooling] if pooling in places else 2 * width * places[_PLACES[pooling]]


_PLACES = {"statistics": "time", "grid statistics": "grid"}


def _cells(values: Tensor, grid: PatchGrid) -> Tensor:
    """(B, height * width, X) averaged over each cell: (B, cells, X). Cells of an odd number of patches share the middle one."""
    planes = values.movedim(1, -1).reshape(len(values), -1, grid.height, grid.width)
    size = (min(GRID_CELLS, grid.height), min(GRID_CELLS, grid.width))
    return torch.nn.functional.adaptive_avg_pool2d(planes, size).flatten(2).movedim(1, -1)
