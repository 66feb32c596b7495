"""Masks: which patches the encoder sees and which it must predict, as index tensors of one static count per batch.

A clip's counts follow from its number of valid patches alone, and which patches they are from the clip's seed alone:
never from the batch, the rank or the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.randomness import counter_uniform

_ROWS_STREAM = -6


@dataclass(frozen=True)
class MaskConfig:
    """How to mask.

    Attributes:
        kind: ``random`` patches; whole ``time`` steps; whole ``frequency`` bands (rows of the height axis); ``tube``: the same
            places at all times (VideoMAE, arXiv 2203.12602); ``block``: what stays visible is a union of blocks (inverse
            block masking, EAT, arXiv 2401.03497).
        mask_ratio: share of a clip's valid patches that is masked, in (0, 1).
        block: (time, height, width) size in patches of a visible block, for ``block``; at most the whole axis.
        num_masks: masks drawn per clip; they share one tokenizer pass.
        predict_ratio: share of the masked patches that is predicted, in (0, 1]; the predictor leaves the others out.

    Raises:
        ConfigError: a value out of range.
    """

    kind: Literal["random", "time", "frequency", "tube", "block"] = "random"
    mask_ratio: float = 0.8
    block: tuple[int, int, int] = (5, 5, 5)
    num_masks: int = 1
    predict_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_ratio < 1.0:
            raise ConfigError(f"masks.mask_ratio={self.mask_ratio} must lie between 0 and 1, both excluded")
        if not 0.0 < self.predict_ratio <= 1.0:
            raise ConfigError(f"masks.predict_ratio={self.predict_ratio} must lie in (0, 1]")
        if self.num_masks < 1 or min(self.block) < 1:
            raise ConfigError(f"masks.num_masks={self.num_masks} and masks.block={self.block} must be 1 or more")


@dataclass(frozen=True, slots=True)
class Masks:
    """Visible and predicted patches of B * num_masks views; the views of one clip follow each other."""

    visible: Subset
    predicted: Subset

    def to(self, device: torch.device) -> Masks:
        """The same masks on ``device``."""
        return Masks(self.visible.to(device), self.predicted.to(device))


def num_masked(config: MaskConfig, grid: PatchGrid, valid_steps: Tensor) -> tuple[Tensor, Tensor]:
    """Masked and predicted patches of a clip with ``valid_steps`` (B,) valid time steps: two int64 tensors of shape (B,).

    At least one patch (time step, band, tube) is masked and one stays visible; of a single one none is masked.
    """
    unit, units = torch.ones_like(valid_steps), valid_steps * grid.patches_per_step
    if config.kind == "time":
        unit, units = torch.full_like(valid_steps, grid.patches_per_step), valid_steps
    elif config.kind == "frequency":
        unit, units = valid_steps * grid.width, torch.full_like(valid_steps, grid.height)
    elif config.kind == "tube":
        unit, units = valid_steps, torch.full_like(valid_steps, grid.patches_per_step)
    masked = torch.minimum((units * config.mask_ratio).round().long().clamp(min=1), (units - 1).clamp(min=0)) * unit
    predicted = (masked * config.predict_ratio).round().long().clamp(min=1)
    return masked, torch.minimum(predicted, masked)


def draw_masks(config: MaskConfig, grid: PatchGrid, valid_steps: Tensor, seeds: Tensor) -> Masks:
    """Masks for a batch.

    Args:
        config: what kind and how many.
        grid: the grid of the padded batch, N patches.
        valid_steps: (B,) int64 valid time steps per clip, on the CPU.
        seeds: (B,) int64 seed per clip, on the CPU.

    Returns:
        Index tensors (B * num_masks, V) and (B * num_masks, M), on the CPU. V + M = N when all clips are full and
        ``predict_ratio`` is 1.
    """
    if len(seeds) == 0:
        none = Subset(torch.zeros(0, 1, dtype=torch.int64), None)
        return Masks(none, none)
    masked_count, predicted_count = num_masked(config, grid, valid_steps)
    step = torch.arange(grid.num_patches) // grid.patches_per_step
    valid = step < valid_steps[:, None]
    visible_count = valid.sum(1) - masked_count
    rows = []
    for mask in range(config.num_masks):
        priority = _priority(config, grid, valid_steps, seeds, mask, visible_count)
        order = torch.where(valid, priority, torch.inf).argsort(dim=1, stable=True)
        rank = torch.arange(grid.num_patches)
        is_masked = (rank >= visible_count[:, None]) & (rank < (visible_count + masked_count)[:, None])
        # All masked patches are predicted, or a random subset of them.
        noise = rank / 1.0 if config.predict_ratio == 1.0 else counter_uniform(seeds, grid.num_patches, stream=3 * mask + 2)
        predicted_order = torch.where(is_masked, noise, torch.inf).argsort(dim=1, stable=True)
        rows.append((order, order.gather(1, predicted_order)))
    visible = torch.stack([row[0] for row in rows], 1).flatten(0, 1)
    predicted = torch.stack([row[1] for row in rows], 1).flatten(0, 1)
    repeats = config.num_masks
    return Masks(
        _ragged(visible, visible_count.repeat_interleave(repeats)),
        _ragged(predicted, predicted_count.repeat_interleave(repeats)),
    )


def _ragged(order: Tensor, counts: Tensor) -> Subset:
    longest = max(int(counts.max()), 1)
    valid = torch.arange(longest) < counts[:, None]
    indices = torch.where(valid, order[:, :longest], 0)
    return Subset(indices, None if bool(valid.all()) else valid)


def _priority(
    config: MaskConfig, grid: PatchGrid, valid_steps: Tensor, seeds: Tensor, mask: int, visible_count: Tensor
) -> Tensor:
    """(B, N): the patches of lowest priority number stay visible."""
    noise = counter_uniform(seeds, grid.num_patches, stream=3 * mask)
    time, height, width = grid.shape
    if config.kind == "random":
        return noise
    if config.kind == "time":
        per_step = torch.where(torch.arange(time) < valid_steps[:, None], noise[:, :time], 1.0)
        return per_step.argsort(1).argsort(1).repeat_interleave(height * width, dim=1) + noise
    if config.kind == "frequency":
        per_band = noise[:, :height].argsort(1).argsort(1)
        return per_band[:, None, :, None].expand(-1, time, height, width).flatten(1) + noise
    if config.kind == "tube":
        per_place = noise[:, : height * width].argsort(1).argsort(1)
        return per_place.repeat(1, time) + noise
    first, count = _first_block(config, grid, valid_steps, seeds, mask, visible_count)
    return torch.where(first == count, count + noise, first.to(torch.float64))


def _first_block(
    config: MaskConfig, grid: PatchGrid, valid_steps: Tensor, seeds: Tensor, mask: int, visible_count: Tensor
) -> tuple[Tensor, int]:
    """(B, N) number of the first block, in the order drawn, that covers a patch, or the number of blocks, also returned.

    Blocks lie inside the valid part.
    """
    time, height, width = grid.shape
    tall, wide = min(config.block[1], height), min(config.block[2], width)
    long = torch.minimum(torch.tensor(config.block[0]), valid_steps)[:, None]
    own_count = 4 * -(-visible_count[:, None] // (long * tall * wide))
    count = int(own_count.max())
    draws = counter_uniform(seeds, 3 * count, stream=3 * mask + 1)
    start = (draws[:, 0::3] * (valid_steps[:, None] - long + 1)).long()
    low = (draws[:, 1::3] * (height - tall + 1)).long()
    left = (draws[:, 2::3] * (width - wide + 1)).long()
    in_time, in_height, in_width = (
        (torch.arange(size) >= begin[..., None]) & (torch.arange(size) < (begin + length)[..., None])
        for size, begin, length in ((time, start, long), (height, low, tall), (width, left, wide))
    )
    place = in_height[..., :, None] & in_width[..., None, :]
    number = torch.arange(count)
    in_block = in_time[..., None, None] & place[:, :, None] & (number < own_count)[..., None, None, None]
    first = torch.where(in_block, number[:, None, None, None], count).amin(1)
    return first.flatten(1), count


def drop_rows(grid: PatchGrid, valid_steps: Tensor, seeds: Tensor, ratios: tuple[float, float, float]) -> Subset:
    """What is left of clips without some whole rows of patches (2-D masking of AudioMAE's fine-tuning, arXiv 2207.06405).

    Args:
        grid: the grid of the padded batch, N patches.
        valid_steps: (B,) int64 valid time steps per clip, on the CPU.
        seeds: (B,) int64 seed per clip, on the CPU.
        ratios: shares of the (time, height, width) rows that are left out; at least one row of each axis stays.

    Returns:
        Indices of one static count, on the CPU, ascending within a clip.
    """
    if len(seeds) == 0:
        return Subset(torch.zeros(0, 1, dtype=torch.int64), None)
    sizes = (valid_steps, torch.full_like(valid_steps, grid.height), torch.full_like(valid_steps, grid.width))
    kept = []
    for axis, (size, whole, ratio) in enumerate(zip(sizes, grid.shape, ratios, strict=True)):
        count = (size * (1 - ratio)).round().long().clamp(min=1)
        noise = counter_uniform(seeds, whole, stream=_ROWS_STREAM - axis)
        noise = torch.where(torch.arange(whole) < size[:, None], noise, torch.inf)
        kept.append(noise.argsort(1).argsort(1) < count[:, None])
    time, height, width = kept
    stays = (time[:, :, None, None] & height[:, None, :, None] & width[:, None, None, :]).flatten(1)
    return _ragged((~stays).long().argsort(dim=1, stable=True), stays.sum(1))
