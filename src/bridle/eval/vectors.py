"""Pooled vectors of files from their windows, which are merged exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bridle.grid import PatchGrid
from bridle.inference import Window
from bridle.nn.pooling import MOTIONS, Course, Moments, Pooling, course_of, pool_course, pool_moments, time_moments


class _OpenFile:
    """A file so far: moments over its steps, its windows merged as by Chan, Golub and LeVeque (1979), and its course."""

    def __init__(self, row: int) -> None:
        self.row, self._steps = row, 0
        self._mean = self._variance = torch.zeros(())
        self._last: Tensor | None = None
        self._course: list[Course] = []

    def add(self, new: int, mean: Tensor, deviation: Tensor) -> None:
        """Its next window, of ``new`` steps, each (places, D)."""
        steps = self._steps + new
        shift, old, share = mean - self._mean, self._steps / steps, new / steps
        self._mean = self._mean + shift * share
        self._variance = self._variance * old + deviation.square() * share + shift.square() * (old * share)
        self._steps = steps

    def add_course(self, steps: Tensor, grid: PatchGrid) -> None:
        """Of the same window, its time steps (T, places, D)."""
        joined = steps if self._last is None else torch.cat([self._last, steps])
        changes, means = course_of(joined, grid)
        self._course.append(Course(changes.cpu(), means[-len(steps) :].cpu()))
        self._last = steps[-1:].clone()

    def moments(self) -> Moments:
        """Of what was added."""
        return Moments(self._mean, self._variance.sqrt())

    def course(self) -> Course:
        """Of what was added."""
        return Course(*map(torch.cat, zip(*self._course, strict=True)))


class Vectors:
    """Vectors of each file by pooling. More is held of the files of one batch only; a file is pooled when it is over.

    Args:
        num_files: how many files.
        poolings: which.
    """

    def __init__(self, num_files: int, poolings: Sequence[Pooling]) -> None:
        self._num_files, self._poolings = num_files, poolings
        self._moves = any(pooling in MOTIONS for pooling in poolings)
        self._open: list[_OpenFile] = []
        self._found: dict[str, Tensor] = {}

    def add(self, group: Iterable[Window], features: Tensor, grid: PatchGrid, steps: Tensor) -> None:
        """Windows in the order of their files: features (B, N, D) and valid steps (B,)."""
        moments = (each.cpu() for each in time_moments(features, grid, steps))
        clips = features.reshape(len(features), grid.time, grid.patches_per_step, -1)
        for window, count, clip, mean, deviation in zip(group, steps.tolist(), clips, *moments, strict=True):
            if not self._open or self._open[-1].row != window.index:
                self._open.append(_OpenFile(window.index))
            self._open[-1].add(count, mean, deviation)
            if self._moves:
                self._open[-1].add_course(clip[:count], grid)
        self._close(self._open[:-1], grid)
        self._open, self._grid = self._open[-1:], grid

    def finish(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Of the files ``rows``, each (n, X) float32. To be called once, behind the last window."""
        self._close(self._open, self._grid)
        return {name: found if len(rows) == len(found) else found[list(rows)] for name, found in self._found.items()}

    def _close(self, files: Sequence[_OpenFile], grid: PatchGrid) -> None:
        if not files:
            return
        moments = Moments(*(torch.stack(each) for each in zip(*(file.moments() for file in files), strict=True)))
        courses = [file.course() for file in files] if self._moves else []
        for pooling in self._poolings:
            if pooling in MOTIONS:
                vectors = torch.stack([pool_course(course, pooling) for course in courses])
            else:
                vectors = pool_moments(moments, grid, pooling)
            if pooling not in self._found:
                self._found[pooling] = torch.zeros(self._num_files, vectors.shape[1])
            self._found[pooling][[file.row for file in files]] = vectors
