"""The difference between two evaluations on the same splits, with an interval that pairs what can be paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridle.errors import DataError
from bridle.eval.intervals import Z_QUANTILE, spread_interval, wilson_interval
from bridle.eval.protocol import ProbeResult


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better some features are than others, in accuracy (0.1 = 10 points).

    Attributes:
        probe: name of the probe.
        over: name of the features that were to be beaten.
        mean: difference of the mean accuracies.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    probe: str
    over: str
    mean: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """True when the interval does not hold 0."""
        return self.low > 0 or self.high < 0


def paired_gain(ours: ProbeResult, theirs: ProbeResult, labels: Sequence[str], over: str) -> Gain:
    """``ours`` minus ``theirs``: Student's interval of the splits' differences, over all test clips below 3 splits.

    Also over all test clips when every split has the same difference, which does not tell how much it varies.

    Args:
        ours: result of a probe on the features in question.
        theirs: of the same probe and splits on other features of the same clips.
        labels: class of each clip.
        over: name of the other features.

    Raises:
        DataError: the results are not of the same probe and splits.
    """
    mine, other = ([split.test_index for split in result.splits] for result in (ours, theirs))
    if ours.probe != theirs.probe or mine != other:
        raise DataError(f"results of {ours.probe} and {theirs.probe} are not of the same probe and splits; evaluate both alike")
    pairs = list(zip(ours.splits, theirs.splits, strict=True))
    differences = [a.accuracy - b.accuracy for a, b in pairs]
    mean = float(np.mean(differences))
    spread = spread_interval([(1 + difference) / 2 for difference in differences])
    if spread is not None:
        return Gain(ours.probe, over, mean, 2 * spread.low - 1, 2 * spread.high - 1)
    right = [
        (int(x == labels[i]), int(y == labels[i]))
        for a, b in pairs
        for i, x, y in zip(a.test_index, a.predictions, b.predictions, strict=True)
    ]
    clips = np.asarray(right)[:, 0] - np.asarray(right)[:, 1]
    half = Z_QUANTILE * float(np.std(clips)) / len(clips) ** 0.5
    if not np.ptp(clips):  # n clips that all say the same may hide as many others as one would miss among n
        half = wilson_interval(0, len(clips))[1]
    return Gain(ours.probe, over, mean, max(-1.0, mean - half), min(1.0, mean + half))
