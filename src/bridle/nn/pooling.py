"""Pooling patch features of clips of different length into one vector; padded patches never count."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.grid import PatchGrid

Pooling = Literal["mean", "time", "statistics", "grid", "grid statistics", "grid motion", "grid motion parts"]
"""``mean`` over all patches; ``time``: over time only, so that height and width (the frequency axis of audio) are kept;
``statistics``: that and the deviation over time; ``grid``: over time and over each cell of a grid of at most 2 x 2 cells of
height and width; ``grid statistics``: that and the deviation over time, averaged over each cell; ``grid motion``: only how much
features change from one time step to the next, averaged over time and over each cell; ``grid motion parts``: the same over each
of 8 equal parts of the time, which keeps what happened when."""

MOTIONS: tuple[Pooling, ...] = ("grid motion", "grid motion parts")
GRID_CELLS = 2
"""Cells of ``grid`` along height and along width."""
TIME_PARTS = 8
"""Parts of ``grid motion parts``."""


def check_pooling(pooling: str, timed: bool) -> None:
    """Refuse what is no pooling, or none of a medium that has no time unless ``timed``.

    Raises:
        ConfigError: it is.
    """
    if pooling not in get_args(Pooling):
        raise ConfigError(f"pooling is {pooling!r}; it must be one of {', '.join(get_args(Pooling))}")
    if pooling in MOTIONS and not timed:
        raise ConfigError(f"pooling is {pooling!r}, and pictures do not move; take grid or mean")


class Moments(NamedTuple):
    """Mean and standard deviation (at least 1e-6) of each place over the time steps, both (B, height * width, D) float32."""

    mean: Tensor
    deviation: Tensor


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
    return Moments(mean, variance.clamp_min(1e-12).sqrt())  # the root of 0 has no gradient


def pool_moments(moments: Moments, grid: PatchGrid, pooling: Pooling) -> Tensor:
    """One vector for each clip.

    Args:
        moments: of B clips.
        grid: of the patches; its time plays no part.
        pooling: none of ``MOTIONS``.

    Returns:
        (B, :func:`pooled_width`).
    """
    if pooling == "mean":
        return moments.mean.mean(1)
    values = torch.cat(moments, dim=-1) if pooling.endswith("statistics") else moments.mean
    return (_cells(values, grid) if pooling.startswith("grid") else values).flatten(1)


def cell_changes(steps: Tensor, grid: PatchGrid) -> Tensor:
    """How much the features of one clip, (T, height * width, D), change from each time step to the next: their mean absolute
    difference over each cell, (T - 1, cells, D) float32.
    """
    steps = steps.float()
    return _cells((steps[1:] - steps[:-1]).abs(), grid)


def pool_changes(changes: Tensor, pooling: Pooling) -> Tensor:
    """One vector (:func:`pooled_width`,) of :func:`cell_changes` by one of ``MOTIONS``; 0 for a single time step.

    Of fewer changes than parts, neighbouring parts share some.
    """
    parts = TIME_PARTS if pooling == "grid motion parts" else 1
    rows = changes.flatten(1)
    if not len(rows):
        return rows.new_zeros(parts * rows.shape[1])
    return torch.nn.functional.adaptive_avg_pool1d(rows.T, parts).T.flatten()


def pool(features: Tensor, grid: PatchGrid, valid_steps: Tensor, pooling: Pooling) -> Tensor:
    """(B, N, D) patch features of B clips, of which ``valid_steps`` (B,) time steps count, to one vector for each."""
    if pooling not in MOTIONS:
        return pool_moments(time_moments(features, grid, valid_steps), grid, pooling)
    clips = features.reshape(len(features), grid.time, grid.patches_per_step, -1)
    return torch.stack(
        [
            pool_changes(cell_changes(clip[:count], grid), pooling)
            for clip, count in zip(clips, valid_steps.tolist(), strict=True)
        ]
    )


def num_cells(grid: PatchGrid) -> int:
    """Cells of ``grid``."""
    return min(GRID_CELLS, grid.height) * min(GRID_CELLS, grid.width)


def pooled_width(width: int, grid: PatchGrid, pooling: Pooling) -> int:
    """Length of a pooled vector of features of ``width``."""
    places = {"mean": 1, "time": grid.patches_per_step, "statistics": grid.patches_per_step}.get(pooling, num_cells(grid))
    if pooling.endswith("statistics"):
        return 2 * width * places
    return width * places * (TIME_PARTS if pooling == "grid motion parts" else 1)


def _cells(values: Tensor, grid: PatchGrid) -> Tensor:
    """(B, height * width, X) averaged over each cell: (B, cells, X). Cells of an odd number of patches share the middle one."""
    size = (min(GRID_CELLS, grid.height), min(GRID_CELLS, grid.width))
    if not len(values):
        return values.new_zeros(0, size[0] * size[1], values.shape[-1])
    planes = values.movedim(1, -1).reshape(len(values), -1, grid.height, grid.width)
    return torch.nn.functional.adaptive_avg_pool2d(planes, size).flatten(2).movedim(1, -1)
