"""Pooling patch features of clips of different length into one vector; padded patches never count."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.grid import PatchGrid

Pooling = Literal[
    "mean", "time", "statistics", "grid", "grid statistics", "grid motion", "grid motion parts", "grid trajectory"
]
"""``mean`` over all patches; ``time``: over time only, so that height and width (the frequency axis of audio) are kept;
``statistics``: that and the deviation over time; ``grid``: over time and over each cell of a grid of at most 2 x 2 cells of
height and width; ``grid statistics``: that and the deviation over time, averaged over each cell; ``grid motion``: only how much
features change from one time step to the next, averaged over time and over each cell; ``grid motion parts``: the same over each
of 8 equal parts of the time, which keeps what happened when; ``grid trajectory``: the path of the features through time is cut
into 8 pieces of equal length, so that standing still counts nothing, and of each piece and cell is kept how much features
change and where they are, relative to the mean of all pieces."""

Averages = Literal["mean", "time", "statistics", "grid", "grid statistics"]
"""Those that are made of :class:`Moments`."""
MOTIONS: tuple[Pooling, ...] = ("grid motion", "grid motion parts", "grid trajectory")
GRID_CELLS = 2
"""Cells of ``grid`` along height and along width."""
TIME_PARTS = 8
"""Parts of ``grid motion parts``, pieces of ``grid trajectory``."""


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
    steps = features.float().reshape(len(features), grid.time, grid.patches_per_step, features.shape[-1])
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


class Course(NamedTuple):
    """How the features of one clip go through time.

    ``changes`` (T - 1, cells, D): mean absolute difference of each time step and the next over each cell; ``means``
    (T, cells, D): of each time step over each cell. Both float32.
    """

    changes: Tensor
    means: Tensor


def course_of(steps: Tensor, grid: PatchGrid) -> Course:
    """The course of one clip's features, (T, height * width, D), by ``grid``, whose time plays no part."""
    steps = steps.float()
    return Course(_cells((steps[1:] - steps[:-1]).abs(), grid), _cells(steps, grid))


def pool_course(course: Course, pooling: Pooling) -> Tensor:
    """One vector (:func:`pooled_width`,) by one of ``MOTIONS``; 0 for a single time step.

    Of fewer changes than parts, neighbouring parts share some.
    """
    if pooling == "grid trajectory":
        return _trajectory(course).flatten()
    parts = TIME_PARTS if pooling == "grid motion parts" else 1
    rows = course.changes.flatten(1)
    if not len(rows):
        return rows.new_zeros(parts * rows.shape[1])
    return torch.nn.functional.adaptive_avg_pool1d(rows.T, parts).T.flatten()


def _trajectory(course: Course) -> Tensor:
    """(TIME_PARTS, cells, 2D): mean change of each piece, then its mean position less that of all pieces.

    Means are over the path and not over time: a step counts by the part of the piece's length that it covers. Lengths are mean
    absolute differences, over cells and dimensions. Where nothing changes at all, time takes the place of length.
    """
    changes, means = course
    values = torch.cat([changes, (means[1:] + means[:-1]) / 2], dim=-1)
    if not len(values):
        return values.new_zeros(TIME_PARTS, *values.shape[1:])
    lengths = changes.mean((1, 2))
    lengths = torch.where(lengths.sum() > 0, lengths, torch.ones_like(lengths))
    ends = lengths.cpu().double().cumsum(0)  # not every device has float64
    ends = TIME_PARTS * ends / ends[-1]
    starts = torch.nn.functional.pad(ends[:-1], (1, 0))
    pieces = torch.arange(TIME_PARTS)[:, None]
    covered = (torch.minimum(ends, pieces + 1) - torch.maximum(starts, pieces)).clamp_min(0)
    change, position = torch.einsum("pt,tcd->pcd", covered.to(values), values).chunk(2, dim=-1)
    return torch.cat([change, position - position.mean(0)], dim=-1)


def pool(features: Tensor, grid: PatchGrid, valid_steps: Tensor, pooling: Pooling) -> Tensor:
    """(B, N, D) patch features of B clips, of which ``valid_steps`` (B,) time steps count, to one vector for each."""
    if pooling not in MOTIONS:
        return pool_moments(time_moments(features, grid, valid_steps), grid, pooling)
    clips = features.reshape(len(features), grid.time, grid.patches_per_step, -1)
    return torch.stack(
        [pool_course(course_of(clip[:count], grid), pooling) for clip, count in zip(clips, valid_steps.tolist(), strict=True)]
    )


def num_cells(grid: PatchGrid) -> int:
    """Cells of ``grid``."""
    return min(GRID_CELLS, grid.height) * min(GRID_CELLS, grid.width)


def pooled_width(width: int, grid: PatchGrid, pooling: Pooling) -> int:
    """Length of a pooled vector of features of ``width``."""
    places = {"mean": 1, "time": grid.patches_per_step, "statistics": grid.patches_per_step}.get(pooling, num_cells(grid))
    if pooling.endswith("statistics"):
        return 2 * width * places
    return width * places * {"grid motion parts": TIME_PARTS, "grid trajectory": 2 * TIME_PARTS}.get(pooling, 1)


def _cells(values: Tensor, grid: PatchGrid) -> Tensor:
    """(B, height * width, X) averaged over each cell: (B, cells, X). Cells of an odd number of patches share the middle one."""
    size = (min(GRID_CELLS, grid.height), min(GRID_CELLS, grid.width))
    if not len(values):
        return values.new_zeros(0, size[0] * size[1], values.shape[-1])
    planes = values.movedim(1, -1).reshape(len(values), -1, grid.height, grid.width)
    return torch.nn.functional.adaptive_avg_pool2d(planes, size).flatten(2).movedim(1, -1)
