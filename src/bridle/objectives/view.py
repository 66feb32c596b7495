"""A batch as the networks see it: cut into patches, with its padding and, for masked prediction, its masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.data.batch import Batch, valid_steps
from bridle.grid import PatchGrid, Subset
from bridle.masking import MaskConfig, Masks, draw_masks
from bridle.nn.patches import Patches, PatchSize, patchify


@dataclass(frozen=True, slots=True)
class WholeView:
    """All patches of a batch, on its device.

    Attributes:
        patches: (B, N, P) with their grid.
        every: which of them are valid.
        steps: (B,) int64 valid time steps, on the CPU.
        rows: (n,) int64 numbers of the valid patches among all B * N, or None when all are valid.
    """

    patches: Patches
    every: Subset
    steps: Tensor
    rows: Tensor | None

    def pick(self, values: Tensor) -> Tensor:
        """The valid rows of (B, N, X): (n, X)."""
        flat = values.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def spread(self, picked: Tensor) -> Tensor:
        """The inverse of :meth:`pick`, with 0 at the patches that are not valid: (n, X) -> (B, N, X)."""
        shape = (*self.patches.values.shape[:2], picked.shape[-1])
        if self.rows is None:
            return picked.reshape(shape)
        empty = picked.new_zeros(shape).flatten(0, 1)
        return empty.index_copy(0, self.rows, picked).reshape(shape)


def grid_of(batch: Batch, patch: PatchSize) -> PatchGrid:
    """The grid of a padded batch."""
    time, height, width = (size // unit for size, unit in zip(batch.inputs.shape[2:], patch, strict=True))
    return PatchGrid(time, height, width)


def whole_view(batch: Batch, patch: PatchSize) -> WholeView:
    """Cut the batch. What depends on lengths is worked out on the CPU, so nothing waits for the device."""
    device = batch.inputs.device
    steps = valid_steps(batch.lengths, patch[0])
    patches = patchify(batch.inputs, patch)
    every = Subset.every(patches.grid, steps)
    rows = None if every.valid is None else every.valid.flatten().nonzero()[:, 0].to(device, non_blocking=True)
    return WholeView(patches, every.to(device), steps, rows)


def draw_view_masks(view: WholeView, masks: MaskConfig, seeds: Tensor, device: torch.device) -> Masks:
    """Masks of the batch, from its clips' seeds (B,) on the CPU."""
    return draw_masks(masks, view.patches.grid, view.steps, seeds).to(device)
