"""Positions of patches: computed from the grid, for any length, or stretched from a grid of another height and width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.grid import PatchGrid

Axis = Literal["time", "height", "width"]
AXES: tuple[Axis, ...] = ("time", "height", "width")


def sine_cosine(grid: PatchGrid, width: int, axes: tuple[Axis, ...], device: torch.device | None = None) -> Tensor:
    """Position of every patch (Vaswani et al. 2017; on several axes as in MAE): per axis ``[sin(p w_i), cos(p w_i)]`` with
    ``w_i = 10000^(-i / n)``, concatenated over the axes in their order.

    The width is shared equally by the axes, so the vector of a patch does not depend on the size of the grid. Channels that
    cannot be shared equally stay 0.

    Args:
        grid: N patches.
        width: D.
        axes: the axes that have a position, e.g. ``("time", "height")`` for audio; ``("width", "height")`` is MAE's order.
        device: where to compute.

    Returns:
        (N, D) float32.

    Raises:
        ConfigError: fewer than two channels for an axis, or an unknown axis.
    """
    share = width // (2 * len(axes)) if axes else 0
    if share < 1 or not set(axes) <= set(AXES):
        raise ConfigError(
            f"width={width} cannot hold positions for axes {axes}; use axes of {AXES} and 2 channels or more for each"
        )
    coordinates = grid.coordinates(device).to(torch.float32)
    frequencies = 10000.0 ** (-torch.arange(share, device=device, dtype=torch.float32) / share)
    parts = []
    for axis in axes:
        angle = coordinates[:, AXES.index(axis), None] * frequencies
        parts += [angle.sin(), angle.cos()]
    positions = torch.cat(parts, dim=1)
    return torch.nn.functional.pad(positions, (0, width - positions.shape[1]))


def sequence(grid: PatchGrid, width: int, device: torch.device | None = None) -> Tensor:
    """Position of every patch by its number n alone: ``sin(n w_i), cos(n w_i)`` by turns, ``w_i = 10000^(-2i / D)`` (VideoMAE).

    A longer clip goes on counting; another height or width of the grid changes the number of every patch.

    Args:
        grid: N patches.
        width: D.
        device: where to compute.

    Returns:
        (N, D) float32.
    """
    # In float32 the angle of patch 1500 is off by 1e-4.
    dtype = torch.float32 if device is not None and device.type == "mps" else torch.float64
    numbers = torch.arange(grid.num_patches, device=device, dtype=dtype)
    frequencies = 10000.0 ** (-2 * torch.arange((width + 1) // 2, device=device, dtype=dtype) / width)
    angle = numbers[:, None] * frequencies
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width].to(torch.float32)


def stretch(positions: Tensor, grid: PatchGrid, height: int, width: int) -> Tensor:
    """Positions of ``grid`` for as many time steps of another height and width, interpolated bicubically (as DINOv2 does).

    Args:
        positions: (N, D), of the patches of ``grid``.
        grid: N patches.
        height: patches along the height of the new grid.
        width: patches along its width.

    Returns:
        (time * height * width, D); ``positions`` itself where height and width are the grid's.
    """
    if (grid.height, grid.width) == (height, width):
        return positions
    table = positions.reshape(*grid.shape, -1).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, size=(height, width), mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).flatten(0, 2)
