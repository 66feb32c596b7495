"""Windows of files: what goes into a model in one batch, and what comes out for whole files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.errors import DataError
from bridle.grid import PatchGrid


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of one clip: ``codes`` (N, R) int64 in the order of ``grid``, which has N patches."""

    codes: Tensor
    grid: PatchGrid


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a file and where it starts.

    Attributes:
        index: row of the entry it belongs to.
        start_seconds: where it starts in the file.
        inputs: (C, T, H, W) as the loader gives it.
        aspect: width over height of the picture it was made from.
    """

    index: int
    start_seconds: float
    inputs: Tensor
    aspect: float = 1.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder makes of a batch of windows.

    Attributes:
        windows: B of them.
        layers: (B, N, D) features of each layer that was asked for.
        grid: N patches; those past a window's end mean nothing.
        steps: (B,) valid time steps of each window, on the CPU.
    """

    windows: list[Window]
    layers: tuple[Tensor, ...]
    grid: PatchGrid
    steps: Tensor


class WindowMeans:
    """Weighted means of vectors over the windows of each file; windows come in the order of their files."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._weights: dict[int, float] = {}

    def add(self, windows: Sequence[Window], vectors: Tensor, weights: Sequence[float]) -> None:
        """Vectors (B, X) of B windows."""
        for window, vector, weight in zip(windows, vectors.float().cpu(), weights, strict=True):
            self._sums[window.index] = self._sums.get(window.index, 0.0) + vector * weight
            self._weights[window.index] = self._weights.get(window.index, 0.0) + weight

    def finish(self) -> dict[int, Tensor]:
        """The mean (X,) of every file, by its index."""
        return {index: total / max(self._weights[index], 1.0) for index, total in self._sums.items()}

    def stacked(self) -> Tensor:
        """The means (files, X).

        Raises:
            DataError: there is none.
        """
        if not self._sums:
            raise DataError("there is no item; give at least 1")
        return torch.stack(list(self.finish().values()))
