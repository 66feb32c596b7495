"""Patch features of whole sets, held in memory for probes that look at every patch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bridle.errors import DataError
from bridle.grid import PatchGrid
from bridle.inference import Window

PATCH_GIGABYTES = 4.0
"""Memory that patch features may take, those of all encoders together; 400 clips of 500 patches, 128 wide, take 0.05."""
NORM_EPSILON = 1e-5
PATCH_BYTES = 2
"""Of one number of a patch, in half precision."""
_LEAST_SCALE = 1e-3  # the columns of a patch have variance 1 together; below this, half precision holds rounding only
_FORECAST_CLIPS, _FORECAST_MARGIN = 16, 2.0  # clips differ in length, so an early forecast must be far above the limit


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Patch features of n clips.

    Attributes:
        clips: of each clip (N, D) float16 on the CPU, its valid patches in their order. Every patch has mean 0 and variance 1
            over D: the norm in front of an attentive probe, less its scale and offset, which half precision then holds
            well whatever the encoder's features are like.
    """

    clips: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def width(self) -> int:
        """D."""
        return self.clips[0].shape[1]

    @property
    def numbers(self) -> Tensor:
        """(n, 1) int64, the number of each clip: what stands for them where probes want one row for each."""
        return torch.arange(len(self.clips))[:, None]

    def batch(self, rows: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Clips ``rows`` padded to the longest: (B, N, D) float32, and which patches are valid, (B, N) bool; on the device."""
        found = [self.clips[row] for row in rows]
        lengths = torch.tensor([len(clip) for clip in found])
        valid = torch.arange(int(lengths.max())) < lengths[:, None]
        return pad_sequence(found, batch_first=True).to(device).float(), valid.to(device)

    def moments(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (at least 1e-3) of all patches of the clips ``rows``, each (D,) float32."""
        total, squares = torch.zeros(2, self.width, dtype=torch.float64)
        count = 0
        for row in rows:
            values = self.clips[row].float()
            total += values.sum(dim=0)
            squares += values.square().sum(dim=0)
            count += len(values)
        mean = total / count
        return mean.float(), (squares / count - mean.square()).clamp(min=_LEAST_SCALE**2).sqrt().float()


class PatchBudget:
    """Memory of all stores together.

    Args:
        gigabytes: the limit.
        num_clips: in the set.
    """

    def __init__(self, gigabytes: float, num_clips: int) -> None:
        self._limit, self._num_clips, self._held = gigabytes, num_clips, 0.0

    def take(self, clip: int, size: int) -> None:
        """``size`` more bytes, for clip number ``clip``.

        Raises:
            DataError: the limit is passed, or surely will be.
        """
        self._held += size / 1e9
        done = clip + 1
        forecast = self._held / done * self._num_clips
        surely = done >= _FORECAST_CLIPS and forecast > _FORECAST_MARGIN * self._limit
        if self._held > self._limit or surely:
            self.check(max(forecast, self._held))

    def check(self, needed: float) -> None:
        """So many gigabytes, for all clips.

        Raises:
            DataError: the limit is below that.
        """
        if needed > self._limit:
            raise DataError(
                f"patch features of {self._num_clips} clips need about {needed:.2g} GB, and the limit is {self._limit:g} GB; "
                "give fewer or shorter clips, raise the limit (--patch-gigabytes), or leave the attentive probe out"
            )


class PatchCollector:
    """Patch features of one encoder, window after window.

    Args:
        num_files: of the set.
        budget: shared by all collectors.
    """

    def __init__(self, num_files: int, budget: PatchBudget) -> None:
        self._budget = budget
        self._found: list[list[Tensor]] = [[] for _ in range(num_files)]

    def add(self, group: Iterable[Window], features: Tensor, grid: PatchGrid, steps: Tensor) -> None:
        """Windows with their features (B, N, D) and valid steps (B,).

        Raises:
            DataError: there is no room for them.
        """
        normal = F.layer_norm(features.float(), features.shape[-1:], eps=NORM_EPSILON).to(torch.float16).cpu()
        for window, clip, count in zip(group, normal, steps.tolist(), strict=True):
            kept = clip[: count * grid.patches_per_step].clone()
            self._budget.take(window.index, kept.numel() * PATCH_BYTES)
            self._found[window.index].append(kept)

    def finish(self, rows: Sequence[int]) -> PatchFeatures:
        """Of the files ``rows``.

        Raises:
            DataError: features that are not finite.
        """
        clips = tuple(torch.cat(self._found[row]) for row in rows)
        for row, clip in zip(rows, clips, strict=True):
            if not bool(torch.isfinite(clip).all()):
                raise DataError(f"patch features of clip {row} hold NaN or infinity; take an earlier checkpoint")
        return PatchFeatures(clips)
