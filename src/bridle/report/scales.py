"""From numbers to places on a plot: linear and logarithmic scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

NARROW = "\u202f"
"""The blank between a number and its per cent sign, where no line breaks."""
Unit = Literal["", "%", "log"]
"""Of an axis: plain numbers, shares in [0, 1] value in per cent, or plain numbers on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis.

    Attributes:
        low: value at ``start``.
        high: value at ``end``.
        start: place of ``low`` in the plot.
        end: place of ``high``.
        unit: see :data:`Unit`.
    """

    low: float
    high: float
    start: float
    end: float
    unit: Unit = ""

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (_log(x) if self.unit == "log" else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int = 6, *, whole: bool = False) -> list[float]:
        """Round values within the scale, at most ``most`` of them and at least one; ``whole`` ones of what is counted."""
        if self.unit == "log":
            powers = range(math.ceil(_log(self.low) - 1e-9), math.floor(_log(self.high) + 1e-9) + 1)
            if len(powers) >= 2:
                return [10.0**power for power in powers][:: -(-len(powers) // most)]
        rough = (self.high - self.low) / max(1, most - 1)
        rough = max(1.0, rough) if whole else rough
        power = 10.0 ** math.floor(math.log10(rough))
        factors = (1, 2, 5, 10) if whole and power < 10 else (1, 2, 2.5, 5, 10)
        step = next(factor * power for factor in factors if factor * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)] or [self.low]

    def text(self, value: float) -> str:
        """How a value of this axis is written."""
        return number(value, "" if self.unit == "log" else self.unit)


def fit(values: Iterable[float], start: float, end: float, unit: Unit = "", *, from_zero: bool = False) -> Scale:
    """The scale that holds all finite values, with a little room; of none, that of 0 to 1.

    On a logarithmic scale only values above 0 count, and without any it is a linear one.
    """
    found = [value for value in values if math.isfinite(value) and (unit != "log" or value > 0)]
    if not found:
        return Scale(0.0, 1.0, start, end, "" if unit == "log" else unit)
    low, high = min(found), max(found)
    if unit == "log":
        return Scale(low / 1.3, high * 1.3, start, end, unit)
    low = min(0.0, low) if from_zero else low
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return Scale(low if from_zero and low == 0 else low - room, high + room, start, end, unit)


def number(value: float, unit: Unit = "") -> str:
    """A value in at most 4 figures; shares in per cent with one decimal."""
    if not math.isfinite(value):
        return "not finite"
    if unit == "%" and 0 < value < 5e-4:
        return f"under 0.1{NARROW}%"
    if unit == "%":
        return f"{round(100 * value, 1) + 0.0:g}{NARROW}%"  # + 0.0: no -0
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3g}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _log(value: float) -> float:
    return math.log10(value)
