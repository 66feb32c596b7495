"""Clips of different length to one padded batch. ``valid_steps`` is the one definition of what counts as padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.data.quarantine import BadFile
from bridle.errors import DataError


@dataclass(frozen=True, eq=False)
class Sample:
    """One clip, ready for a batch.

    Attributes:
        inputs: (C, T, H, W) as its loader gives it: float32, or uint8 pixels.
        length: valid frames along T, at least 1.
        seed: all of this clip's randomness in this epoch (crop, augmentation, masks) follows from it.
        index: row of the manifest.
        aspect: width over height of the picture it was made from.
    """

    inputs: Tensor
    length: int
    seed: int
    index: int
    aspect: float = 1.0


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips padded with 0 to one length. It may hold no clip at all (B = 0).

    Attributes:
        inputs: (B, C, T, H, W); T is a multiple of the patch's length. Float32 and normalised once its
            loader has finished it; padding counts nowhere.
        lengths: (B,) int64 on the CPU, valid frames, none behind the last valid time step of patches.
        seeds: (B,) int64 on the CPU, see :class:`Sample`.
        indices: (B,) int64 on the CPU, rows of the manifest.
        aspects: (B,) float32 on the CPU, width over height of the pictures that clips were made from.
        bad: files that were to be in this batch and cannot be read.
    """

    inputs: Tensor
    lengths: Tensor
    seeds: Tensor
    indices: Tensor
    aspects: Tensor
    bad: tuple[BadFile, ...] = ()

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with ``inputs`` on the device; the small integer tensors stay on the CPU."""
        return dataclasses.replace(self, inputs=self.inputs.to(device, non_blocking=True))

    def split(self, count: int) -> list[Batch]:
        """``count`` micro-batches of every ``count``-th clip, some perhaps of no clip: as many on every rank, whose share of
        a batch may be smaller. The first holds the bad files.
        """
        parts = [slice(start, None, count) for start in range(count)]
        return [
            Batch(
                self.inputs[part],
                self.lengths[part],
                self.seeds[part],
                self.indices[part],
                self.aspects[part],
                () if i else self.bad,
            )
            for i, part in enumerate(parts)
        ]

    def pin_memory(self) -> Batch:
        """The batch with ``inputs`` in page-locked memory; called by torch's DataLoader."""
        return dataclasses.replace(self, inputs=self.inputs.pin_memory())


def valid_steps(lengths: Tensor, patch_time: int) -> Tensor:
    """Time steps of patches that count as content: those with at least half of their frames valid, and at least one.

    Args:
        lengths: (B,) int64, valid frames.
        patch_time: t, frames per patch.

    Returns:
        (B,) int64.
    """
    return ((lengths + patch_time // 2) // patch_time).clamp(min=1)


def collate(
    items: Sequence[Sample | BadFile],
    patch: tuple[int, int, int],
    frame_shape: tuple[int, int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """One batch, padded with 0 or cut along T to ``max(valid_steps) * t`` frames.

    Args:
        items: clips of equal (C, H, W), and files that could not be read.
        patch: (t, h, w) input units per patch.
        frame_shape: (C, H, W) of the batch without clips that no clip gives; None makes that an error.
        dtype: of that batch; else it is that of the clips.

    Raises:
        DataError: there is no clip and no ``frame_shape``, or the clips differ in (C, H, W).
    """
    clips = [item for item in items if isinstance(item, Sample)]
    bad = tuple(item for item in items if isinstance(item, BadFile))
    if not clips and frame_shape is None:
        shown = "; ".join(f"{file.key} ({file.reason})" for file in bad[:3])
        raise DataError(f"all {len(bad)} files of a batch are unreadable: {shown}; repair or remove them")
    shapes: set[tuple[int, ...]] = {(clip.inputs.shape[0], *clip.inputs.shape[2:]) for clip in clips}
    if len(shapes) > 1:
        raise DataError(f"clips of one batch differ in (channels, height, width): {sorted(map(str, shapes))}; use one loader")
    channels, height, width = next(iter(shapes), frame_shape or ())
    lengths = torch.tensor([clip.length for clip in clips], dtype=torch.int64)
    reach = patch[0] * valid_steps(lengths, patch[0])  # what lies behind belongs to no patch, whatever else is in the batch
    frames = int(reach.max()) if clips else patch[0]
    dtype = clips[0].inputs.dtype if clips else dtype
    inputs = torch.zeros(len(clips), channels, frames, height, width, dtype=dtype)
    for row, clip in zip(inputs, clips, strict=True):
        kept = min(clip.length, frames)
        row[:, :kept] = clip.inputs[:, :kept]
    return Batch(
        inputs=inputs,
        lengths=torch.minimum(lengths, reach),
        seeds=torch.tensor([clip.seed for clip in clips], dtype=torch.int64),
        indices=torch.tensor([clip.index for clip in clips], dtype=torch.int64),
        aspects=torch.tensor([clip.aspect for clip in clips], dtype=torch.float32),
        bad=bad,
    )
