"""Numbers that say how good predictions are: for one class per clip, and for several.

Pure functions of arrays, equal to scikit-learn's (the tests compare). What is not defined is None, never 0 or NaN: the
recall of a class without clips, say. Such a class is listed, and left out of means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridle.errors import DataError

CALIBRATION_BINS = 15
"""Of the expected calibration error, as Guo et al. 2017 take them."""
_SUM_TOLERANCE = 1e-3  # rows of float32 or float16 probabilities add to 1 within rounding

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TopK:
    """Share of clips whose class is among the ``k`` most probable."""

    k: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class.

    Attributes:
        name: of the class.
        support: clips of it.
        predicted: clips that were said to be of it.
        precision: share of those that are; None when there are none.
        recall: share of its clips that were found; None when it has none.
        f1: ``2 * right / (support + predicted)``; None when both are 0.
    """

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class ClassificationMetrics:
    """Result of :func:`classification_metrics`; ``bridle.config.to_dict`` makes it plain data. Shares are in [0, 1].

    Attributes:
        num_clips: N.
        accuracy: share of clips whose most probable class is theirs.
        top_k: for every k that was asked for.
        balanced_accuracy: mean recall over the classes that have clips.
        macro_f1: mean F1 over the classes that have clips or were predicted.
        negative_log_likelihood: mean over clips, in nats.
        calibration_error: expected calibration error.
        classes: a row for each.
        without_clips: names of the classes that no clip is of.
        confusion: C x C clips; rows are the true classes, columns the predicted ones.
    """

    num_clips: int
    accuracy: float
    top_k: tuple[TopK, ...]
    balanced_accuracy: float
    macro_f1: float
    negative_log_likelihood: float
    calibration_error: float
    classes: tuple[ClassRow, ...]
    without_clips: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class TagRow:
    """One class of several that a clip may be of.

    Attributes:
        name: of the class.
        positives: clips that are of it.
        average_precision: None without positives.
        auc: area under the ROC curve; None without positives or without negatives.
    """

    name: str
    positives: int
    average_precision: float | None
    auc: float | None


@dataclass(frozen=True, slots=True)
class TagMetrics:
    """Result of :func:`tag_metrics`; ``bridle.config.to_dict`` makes it plain data.

    Attributes:
        num_clips: N.
        mean_average_precision: mAP, over the classes with positives; None when no class has any.
        micro_average_precision: of all N * C pairs together; None without positives.
        mean_auc: over the classes with positives and negatives; None when there are none.
        d_prime: ``sqrt(2)`` times the normal quantile of ``mean_auc``; None when that is None, 0 or 1.
        classes: a row for each.
        without_positives: names of the classes that no clip is of.
        without_negatives: names of the classes that all clips are of.
    """

    num_clips: int
    mean_average_precision: float | None
    micro_average_precision: float | None
    mean_auc: float | None
    d_prime: float | None
    classes: tuple[TagRow, ...]
    without_positives: tuple[str, ...]
    without_negatives: tuple[str, ...]


def classification_metrics(
    probabilities: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], top_k: Sequence[int] = (1, 5)
) -> ClassificationMetrics:
    """How well probabilities say the one class of every clip.

    Of equally probable classes the first one counts as the more probable.

    Args:
        probabilities: (N, C), every row adds to 1.
        labels: (N,) integers in [0, C), the true class.
        classes: C names.
        top_k: values of k; from C on the accuracy is 1.

    Raises:
        DataError: no clips, shapes that do not fit, labels out of range, rows that are no probabilities, or a k below 1.
    """
    chances, truth = _checked_scores(probabilities, classes), np.asarray(labels)
    num, num_classes = chances.shape
    if truth.shape != (num,) or not np.issubdtype(truth.dtype, np.integer):
        raise DataError(f"labels have shape {truth.shape} and type {truth.dtype}; it must be ({num},) integers, one per clip")
    if truth.min() < 0 or truth.max() >= num_classes:
        raise DataError(f"labels run from {truth.min()} to {truth.max()}; they must lie in [0, {num_classes}), the classes")
    if chances.min() < 0 or np.abs(chances.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
        row = int(np.abs(chances.sum(axis=1) - 1).argmax()) if chances.min() >= 0 else int(chances.min(axis=1).argmin())
        raise DataError(f"row {row} holds no probabilities (sum {chances[row].sum():g}); all must be at least 0 and add to 1")
    if min(top_k, default=1) < 1:
        raise DataError(f"top-k is asked for k = {min(top_k)}; it must be at least 1")
    predicted = chances.argmax(axis=1)
    confusion = np.bincount(truth * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)
    rows = _class_rows(confusion, classes)
    ranks = _ranks(chances, truth)
    return ClassificationMetrics(
        num_clips=num,
        accuracy=float((predicted == truth).mean()),
        top_k=tuple(TopK(int(k), float((ranks < k).mean())) for k in top_k),
        balanced_accuracy=float(np.mean([row.recall for row in rows if row.recall is not None])),
        macro_f1=float(np.mean([row.f1 for row in rows if row.f1 is not None])),
        negative_log_likelihood=_negative_log_likelihood(chances[np.arange(num), truth]),
        calibration_error=calibration_error(chances.max(axis=1), predicted == truth),
        classes=rows,
        without_clips=tuple(row.name for row in rows if row.support == 0),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def calibration_error(confidence: NDArray[Any], right: NDArray[np.bool_], num_bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3): ``sum_b n_b / N * |accuracy_b - confidence_b|``.

    Bins have equal width; each holds the confidences above its lower end and up to its upper one.

    Args:
        confidence: (N,) in [0, 1], the probability of what was predicted.
        right: (N,) whether it is true.
        num_bins: at least 1.
    """
    values = np.asarray(confidence, dtype=np.float64)
    index = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], values)
    gaps = np.bincount(index, weights=np.asarray(right, dtype=np.float64) - values, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(values))


def tag_metrics(scores: NDArray[Any], targets: NDArray[Any], classes: Sequence[str]) -> TagMetrics:
    """How well scores say the classes of every clip, of which there may be none, one or several.

    Args:
        scores: (N, C), larger for more likely; probabilities or any other finite numbers.
        targets: (N, C) bool, which classes are true of a clip.
        classes: C names.

    Raises:
        DataError: no clips, shapes that do not fit, NaN or infinity, or targets that are not bool.
    """
    values, truth = _checked_scores(scores, classes), np.asarray(targets)
    if truth.shape != values.shape or truth.dtype != np.bool_:
        raise DataError(f"targets have shape {truth.shape} and type {truth.dtype}; it must be {values.shape} bool")
    rows = tuple(_tag_row(str(name), *pair) for name, *pair in zip(classes, values.T, truth.T, strict=True))
    mean_auc = _mean([row.auc for row in rows])
    return TagMetrics(
        num_clips=len(values),
        mean_average_precision=_mean([row.average_precision for row in rows]),
        micro_average_precision=average_precision(values.ravel(), truth.ravel()),
        mean_auc=mean_auc,
        d_prime=None if mean_auc in (None, 0.0, 1.0) else 2**0.5 * NormalDist().inv_cdf(mean_auc),
        classes=rows,
        without_positives=tuple(row.name for row in rows if row.positives == 0),
        without_negatives=tuple(row.name for row in rows if row.positives == len(values)),
    )


def average_precision(scores: NDArray[Any], targets: NDArray[Any]) -> float | None:
    """``sum_n (R_n - R_{n-1}) P_n`` over the distinct scores (N,), largest first; None when no target (N,) is true."""
    positives, chosen = _curve(scores, targets)
    if positives[-1] == 0:
        return None
    gained = np.diff(positives, prepend=0) / positives[-1]
    return float((gained * positives / chosen).sum())


def roc_auc(scores: NDArray[Any], targets: NDArray[Any]) -> float | None:
    """Area under the ROC curve of scores (N,), by trapezoids, so ties count half; None when all targets (N,) are equal."""
    positives, chosen = _curve(scores, targets)
    negatives = chosen - positives
    if positives[-1] == 0 or negatives[-1] == 0:
        return None
    heights = positives + np.concatenate([[0], positives[:-1]])
    return float((np.diff(negatives, prepend=0) * heights).sum() / (2 * positives[-1] * negatives[-1]))


def _curve(scores: NDArray[Any], targets: NDArray[Any]) -> tuple[Floats, Floats]:
    """True ones and all among the clips of at least each distinct score, largest score first."""
    order = np.argsort(scores, kind="stable")[::-1]
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    return np.cumsum(targets[order], dtype=np.float64)[ends], ends + 1.0


def _tag_row(name: str, scores: NDArray[Any], targets: NDArray[Any]) -> TagRow:
    return TagRow(name, int(targets.sum()), average_precision(scores, targets), roc_auc(scores, targets))


def _class_rows(confusion: Counts, classes: Sequence[str]) -> tuple[ClassRow, ...]:
    rows = []
    for name, right, support, predicted in zip(
        classes, confusion.diagonal().tolist(), confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist(), strict=True
    ):
        shares = (_share(right, predicted), _share(right, support), _share(2 * right, support + predicted))
        rows.append(ClassRow(str(name), support, predicted, *shares))
    return tuple(rows)


def _ranks(chances: Floats, truth: Counts) -> Counts:
    """Number of classes that come before the true one of each clip, (N,)."""
    own = chances[np.arange(len(truth)), truth][:, None]
    before = np.arange(chances.shape[1]) < truth[:, None]
    return np.asarray(((chances > own) | ((chances == own) & before)).sum(axis=1))


def _negative_log_likelihood(chances: Floats) -> float:
    return float(-np.log(np.clip(chances, np.finfo(np.float64).eps, None)).mean()) + 0.0


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _checked_scores(scores: NDArray[Any], classes: Sequence[str]) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(classes) or 0 in values.shape:
        raise DataError(f"scores have shape {values.shape}; it must be (clips, {len(classes)}), at least 1 of each")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DataError(f"scores hold NaN or infinity in {int(bad.sum())} rows, first {int(bad.argmax())}; leave them out")
    return values
