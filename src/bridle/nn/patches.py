"""Cutting a clip into patches: the last place where the shape of a medium matters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from bridle.errors import DataError
from bridle.grid import PatchGrid

PatchSize = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Patches:
    """The patches of a batch: ``values`` (B, N, P) with P = channels * t * h * w, in the order of ``grid``."""

    values: Tensor
    grid: PatchGrid


def patch_values(patch: PatchSize, channels: int) -> int:
    """P, the number of values in one patch."""
    return channels * math.prod(patch)


def patchify(inputs: Tensor, patch: PatchSize) -> Patches:
    """Cut (B, C, T, H, W) into patches of ``(t, h, w)`` input units; a patch's values are ordered (C, t, h, w).

    Raises:
        DataError: an axis is not a multiple of the patch.
    """
    batch, channels, *size = inputs.shape
    if any(length % unit or length < unit for length, unit in zip(size, patch, strict=True)):
        raise DataError(f"a clip of {tuple(size)} units cannot be cut into patches of {patch}; pad or crop it to a multiple")
    (t, h, w), (nt, nh, nw) = patch, (length // unit for length, unit in zip(size, patch, strict=True))
    cut = inputs.reshape(batch, channels, nt, t, nh, h, nw, w).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return Patches(cut.reshape(batch, nt * nh * nw, channels * t * h * w), PatchGrid(nt, nh, nw))


def normalise_patches(values: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch to zero mean and unit variance over its values (the target of MAE, arXiv 2111.06377); (..., P) -> (..., P)."""
    centred = values - values.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()


def without_mean_over_time(patches: Patches, valid: Tensor | None, patch: PatchSize) -> Tensor:
    """What is left of each patch when the clip's mean over time at its place is taken off; of a still clip that is 0.

    Args:
        patches: (B, N, P) with their grid.
        valid: (B, N) bool, the patches that count for the mean, at least one time step of each clip; None for all.
        patch: their size.

    Returns:
        (B, N, P) float32.
    """
    values, grid, (units, *area) = patches.values.float(), patches.grid, patch
    cut = values.reshape(len(values), grid.time, grid.patches_per_step, -1, units, math.prod(area))
    if valid is None:
        mean = cut.mean((1, 4), keepdim=True)
    else:
        counts = valid.reshape(len(values), grid.time, grid.patches_per_step, 1, 1, 1)
        mean = (cut.mean(4, keepdim=True) * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)
    return (cut - mean).reshape(values.shape)
