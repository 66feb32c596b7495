"""What the tests of several folds say together."""

from __future__ import annotations

import numpy as np
import pytest

from bridle.eval.intervals import Interval, t_interval, wilson_interval
from bridle.eval.metrics import classification_metrics, tag_metrics
from bridle.finetuning.folds import cross_validation
from bridle.finetuning.parts import Part
from bridle.finetuning.score import Measured, PredictedClip

NUM_CLIPS = 10


def parts(number: int) -> list[Part]:
    return [Part(str(fold), (0, 1), (), (2, 3)) for fold in range(number)]


def accurate(num_right: int) -> Measured:
    """Ten clips of class a, some taken for b."""
    chances = np.array([[0.9, 0.1]] * num_right + [[0.1, 0.9]] * (NUM_CLIPS - num_right))
    metrics = classification_metrics(chances, np.zeros(NUM_CLIPS, dtype=np.int64), ("a", "b"))
    return Measured("x", ("a", "b"), metrics, None, clips(), ())


def precise(rank: int) -> Measured:
    """One clip that has the tag, in this place of ten by its chance: average precision 1 / rank."""
    chances = np.linspace(1, 0.1, NUM_CLIPS)[:, None]
    targets = np.arange(NUM_CLIPS)[:, None] == rank - 1
    return Measured("x", ("a",), None, tag_metrics(chances, targets, ("a",)), clips(), ())


def clips() -> tuple[PredictedClip, ...]:
    return tuple(PredictedClip(f"{number}.wav", ("a",), ("a",), 0.9) for number in range(NUM_CLIPS))


@pytest.mark.parametrize(
    ("right", "ends", "made"),
    [
        ([9, 7, 8], t_interval([0.9, 0.7, 0.8]), "95 % Student interval over 3 splits"),
        ([10, 10, 10], wilson_interval(30, 30), "95 % Wilson interval over 30 test clips"),
        ([9, 7], wilson_interval(16, 20), "95 % Wilson interval over 20 test clips"),
    ],
)
def test_accuracy_of_folds(right: list[int], ends: tuple[float, float], made: str) -> None:
    joined = cross_validation(parts(len(right)), [accurate(number) for number in right])
    assert joined.score == pytest.approx(sum(right) / len(right) / NUM_CLIPS)
    assert joined.interval is not None
    assert (joined.interval.low, joined.interval.high) == pytest.approx(ends)
    assert joined.interval.made == made
    assert joined.interval.low < joined.score


def test_precision_of_folds() -> None:
    varied = cross_validation(parts(3), [precise(rank) for rank in (1, 2, 4)])
    assert varied.interval == Interval(*t_interval([1, 0.5, 0.25]), "95 % Student interval over 3 splits")
    for ranks in ((2, 2, 2), (1, 2)):
        assert cross_validation(parts(len(ranks)), [precise(rank) for rank in ranks]).interval is None
