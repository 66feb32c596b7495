"""The metrics of a run as curves over its steps, with the stretch of every phase."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

POINTS = 240
"""Points of a curve in a plot; of more steps, neighbours are averaged."""


@dataclass(frozen=True, slots=True)
class Band:
    """The steps of a phase, as far as they were logged: behind ``first`` up to ``last``."""

    name: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Series:
    """One curve.

    Attributes:
        name: in the legend.
        steps: finished steps of the run, rising.
        values: as many; some may not be finite.
        slot: number of its colour.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Curves:
    """What was logged.

    Attributes:
        bands: phases in their order.
        values: by the metric's name, (step, value) of every line that has it.
    """

    bands: tuple[Band, ...]
    values: dict[str, list[tuple[int, float]]]

    @property
    def last_step(self) -> int:
        """The last logged one; 0 when there is none."""
        return self.bands[-1].last if self.bands else 0

    def named(self, name: str, label: str, slot: int = 0) -> Series | None:
        """One metric under another label; None where it was never logged."""
        points = self.values.get(name)
        if points is None:
            return None
        return Series(label, tuple(step for step, _ in points), tuple(value for _, value in points), slot)

    def levels(self, metric: str) -> tuple[Series, ...]:
        """``metric/0``, ``metric/1``, ... as ``level 0``, ``level 1``, ..."""
        found = (self.named(f"{metric}/{level}", f"level {level}", level) for level in range(self.num_levels(metric)))
        return tuple(series for series in found if series is not None)

    def num_levels(self, metric: str) -> int:
        """How many levels of a metric were logged."""
        return sum(name.rpartition("/")[0] == metric for name in self.values)


def read_curves(metrics: Sequence[dict[str, Any]]) -> Curves:
    """The lines of ``metrics.jsonl`` as :func:`bridle.train.metrics.read_metrics` gives them, in their order."""
    bands: list[Band] = []
    values: dict[str, list[tuple[int, float]]] = {}
    for line in metrics:
        step, phase = int(line["step"]), str(line.get("phase", ""))
        if bands and bands[-1].name == phase:
            bands[-1] = Band(phase, bands[-1].first, step)
        else:
            bands.append(Band(phase, bands[-1].last if bands else 0, step))
        for name, value in line.items():
            if name not in ("step", "phase") and isinstance(value, int | float):
                values.setdefault(name, []).append((step, float(value)))
    return Curves(tuple(bands), values)


def pieces(series: Series, bands: Iterable[Band], points: int = POINTS) -> list[list[tuple[float, float]]]:
    """A curve as (step, value) pieces: broken where a phase begins or a value is not finite, thinned to about ``points``.

    Thinning averages neighbours of one piece, so no value is lost and none is made up.
    """
    starts = {band.first for band in bands}
    made: list[list[tuple[float, float]]] = []
    current: list[tuple[float, float]] = []
    before = -1
    for step, value in zip(series.steps, series.values, strict=True):
        if current and (not math.isfinite(value) or any(before <= start < step for start in starts)):
            made.append(current)
            current = []
        if math.isfinite(value):
            current.append((float(step), value))
        before = step
    made += [current] if current else []
    size = max(1, math.ceil(len(series.steps) / points))
    return [[_mean(piece[i : i + size]) for i in range(0, len(piece), size)] for piece in made]


def sampled(series: Sequence[Series], rows: int = 16) -> list[tuple[int, list[float]]]:
    """(step, values) of at most ``rows`` logged steps, evenly spread, the first and last among them; NaN where one has none."""
    steps = sorted({step for each in series for step in each.steps})
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(1, rows - 1))] for i in range(rows)}) if steps else []
    tables = [dict(zip(each.steps, each.values, strict=True)) for each in series]
    return [(step, [table.get(step, math.nan) for table in tables]) for step in chosen]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(step for step, _ in points) / len(points), sum(value for _, value in points) / len(points)
