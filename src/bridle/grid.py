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
