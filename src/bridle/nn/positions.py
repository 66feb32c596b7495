"""Sine-cosine positions computed from the grid, for any length (Vaswani et al. 2017; on several axes as in MAE)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.grid import PatchGrid

Axis = Literal["time", "height", "width"]
_AXES: tuple[Axis, ...] = ("time", "height", "width")


def sine_cosine(grid: PatchGrid, width: int, axes: tuple[Axis, ...], device: torch.device | None = None) -> Tensor:
    """Position of every patch: per axis ``[sin(p w_i), cos(p w_i)]`` with ``w_i = 10000^(-i / n)``, concatenated over the axes.

    The width is shared equally by the axes, so the vector of a patch does not depend on the size of the grid. Channels that
    cannot be shared equally stay 0.

    Args:
        grid: N patches.
        width: D.
        axes: the axes that have a position, e.g. ``("time", "height")`` for audio.
        device: where to compute.

    Returns:
        (N, D) float32.

    Raises:
        ConfigError: fewer than two channels for an axis, or an unknown axis.
    """
    share = width // (2 * len(axes)) if axes else 0
    if share < 1 or not set(axes) <= set(_AXES):
        raise ConfigError(
            f"width={width} cannot hold positions for axes {axes}; use axes of {_AXES} and 2 channels or more for each"
        )
    coordinates = grid.coordinates(device).to(torch.float32)
    frequencies = 10000.0 ** (-torch.arange(share, device=device, dtype=torch.float32) / share)
    parts = []
    for axis in axes:
        angle = coordinates[:, _AXES.index(axis), None] * frequencies
        parts += [angle.sin(), angle.cos()]
    positions = torch.cat(parts, dim=1)
    return torch.nn.functional.pad(positions, (0, width - positions.shape[1]))
