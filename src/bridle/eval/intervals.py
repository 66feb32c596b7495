"""95 % intervals of accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; beyond, a series in 1/degrees is exact to 2e-4.
_T_QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
Z_QUANTILE = 1.959964
"""97.5 % quantile of the normal distribution."""
MIN_SPLITS = 3
"""From which on the spread of splits says how sure their mean is."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Its ends, and how it was made, e.g. ``95 % Student interval over 5 splits``."""

    low: float
    high: float
    made: str


def student_half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of n >= 2 values by Student's t with n - 1 degrees of freedom."""
    degrees = len(values) - 1
    if degrees <= len(_T_QUANTILES):
        quantile = _T_QUANTILES[degrees - 1]
    else:  # Abramowitz and Stegun 26.7.5
        quantile = Z_QUANTILE + 2.37227 / degrees + 2.8225 / degrees**2 + 2.5556 / degrees**3
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def t_interval(accuracies: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of n >= 2 accuracies (:func:`student_half_width`), cut to [0, 1]."""
    mean, half = float(np.mean(accuracies)), student_half_width(accuracies)
    return max(0.0, mean - half), min(1.0, mean + half)


def wilson_interval(num_right: float, num_total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    share, z2 = num_right / num_total, Z_QUANTILE**2 / num_total
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def spread_interval(values: Sequence[float]) -> Interval | None:
    """:func:`t_interval`; None for fewer than 3 values and for equal ones, which do not tell how much they vary."""
    if len(values) < MIN_SPLITS or max(values) - min(values) < 1e-12:
        return None
    return Interval(*t_interval(values), f"95 % Student interval over {len(values)} splits")


def accuracy_interval(accuracies: Sequence[float], num_tests: Sequence[int]) -> Interval:
    """95 % interval of the mean accuracy of some splits.

    Student's over 3 splits or more (approximate: they share training clips). Fewer, or splits that are all equally accurate, as
    with a handful of easy clips, do not tell how much an accuracy varies: then Wilson's, as if the mean were that of all test
    clips.

    Args:
        accuracies: of each split, in [0, 1].
        num_tests: test clips of each.
    """
    total = sum(num_tests)
    ends = wilson_interval(float(np.mean(accuracies)) * total, total)
    return spread_interval(accuracies) or Interval(*ends, f"95 % Wilson interval over {total} test clips")
