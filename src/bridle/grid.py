"""The grid of patches a clip is cut into: the only geometry that models, masks and codes know."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Number of patches along time, height and width. Patches are numbered time-major, width fastest.

    Audio is ``time x frequency`` (frequency is the height, width is 1), an image ``height x width`` (time is 1),
    video all three. ``patch = (t * height + h) * width + w``.

    Raises:
        ConfigError: an axis has less than one patch.
    """

    time: int
    height: int
    width: int = 1

    def __post_init__(self) -> None:
        if min(self.time, self.height, self.width) < 1:
            raise ConfigError(f"PatchGrid{self.shape} has an axis with less than 1 patch; use a longer clip or smaller patches")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(time, height, width)``."""
        return (self.time, self.height, self.width)

    @property
    def num_patches(self) -> int:
        """N, the number of patches."""
        return self.time * self.height * self.width

    @property
    def patches_per_step(self) -> int:
        """Patches that share one time step: ``height * width``."""
        return self.height * self.width

    def coordinates(self, device: torch.device | None = None) -> Tensor:
        """``(time, height, width)`` index of every patch, shape (N, 3), int64."""
        axes = [torch.arange(size, device=device) for size in self.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


@dataclass(frozen=True, slots=True)
class Subset:
    """Which patches of each clip take part, as indices of one static count per batch.

    Attributes:
        indices: (B, V) int64 patch numbers, or None for all N patches in order.
        valid: (B, V) bool, False where an entry only fills up the row; None when every entry counts.
    """

    indices: Tensor | None
    valid: Tensor | None

    def gather(self, patches: Tensor) -> Tensor:
        """Rows of ``patches`` (b, N, X) at the indices: (B, V, X). B may be a multiple of b: a clip's masks are neighbours."""
        if self.indices is None:
            return patches
        index = self.per_clip(patches.shape[0])[..., None].expand(-1, -1, patches.shape[-1])
        return patches.gather(1, index).reshape(*self.indices.shape, patches.shape[-1])

    def per_clip(self, num_clips: int) -> Tensor:
        """The indices (B, V) with all rows of a clip in one: (num_clips, B / num_clips * V)."""
        assert self.indices is not None
        rows, count = self.indices.shape
        return self.indices.reshape(num_clips, rows // max(num_clips, 1) * count if rows else count)

    def to(self, device: torch.device) -> Subset:
        """The same subset on ``device``."""
        move = (t if t is None else t.to(device, non_blocking=True) for t in (self.indices, self.valid))
        return Subset(*move)

    @staticmethod
    def every(grid: PatchGrid, valid_steps: Tensor) -> Subset:
        """All patches; those past a clip's ``valid_steps`` (B,) are marked as not valid. ``valid_steps`` lies on the CPU."""
        if bool((valid_steps >= grid.time).all()):
            return Subset(None, None)
        step = torch.arange(grid.num_patches) // grid.patches_per_step
        return Subset(None, step[None, :] < valid_steps[:, None])
