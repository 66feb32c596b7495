"""Which clips train a probe and which test it, and every choice in between made without the test clips.

For each outer split the pooling and the probe's parameter (C or k) are those of the best mean accuracy over *inner*
splits of its training part; the probe is then fitted on the whole training part and sees the test clips once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.errors import DataError
from bridle.eval.intervals import accuracy_interval
from bridle.eval.knn import knn_predictions, knn_probabilities
from bridle.eval.linear_probe import linear_predictions, linear_probabilities
from bridle.eval.ranking import Contest, Ranking, thin
from bridle.eval.splits import Indices, Split, splits_from_folds, splits_from_split, stratified_splits
from bridle.wording import count

Predict = Callable[[Tensor, Tensor, Tensor, Sequence[float]], Tensor]
"""``(train (n, D), labels (n,), queries (m, D), grid of G parameters) -> (G, m)`` predicted labels."""
Probabilities = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""``(train (n, D), labels (n,), queries (m, D), parameter) -> (m, K)`` for the K values of the labels, ascending."""

NUM_STRATIFIED_INNER = 4
MAX_INNER_FOLDS = 10
MAX_INNER_TEST = 2000
"""Clips that an inner split tests; more tell the choices apart no better, and kNN compares each of them with all others."""


@dataclass(frozen=True)
class FeatureSet:
    """Frozen features of N labelled clips, row-aligned.

    Attributes:
        pooled: name of the pooling -> (N, D) features; D may differ.
        labels: class of each clip.
        folds: official fold of each clip, or None.
        splits: ``train`` / ``validation`` / ``test`` of each clip, or None; not together with ``folds``.
        groups: clips of one group (a speaker, a recording) are never on both sides of a split; or None.

    Raises:
        DataError: no features, lengths that differ, NaN or infinity, a single class, or both ``folds`` and ``splits``.
    """

    pooled: Mapping[str, NDArray[Any] | Tensor]
    labels: Sequence[str]
    folds: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.pooled:
            raise DataError("0 poolings given; a feature set needs at least 1")
        for name, column in (("folds", self.folds), ("splits", self.splits), ("groups", self.groups)):
            if column is not None and len(column) != len(self.labels):
                raise DataError(f"{name} has {len(column)} values for {len(self.labels)} clips; give one per clip")
        for name, values in self.pooled.items():
            _check_features(name, torch.as_tensor(values), len(self.labels))
        if len(set(self.labels)) < 2:
            raise DataError(f"labels hold {len(set(self.labels))} class; a probe needs at least 2")
        if self.folds is not None and self.splits is not None:
            raise DataError("folds and splits are both given; pass only the one that is the official protocol")


@dataclass(frozen=True, slots=True)
class Probe:
    """A classifier on frozen features. ``select``, maybe a faster ``predict``, ranks the grid on inner splits. Where
    ``probabilities`` are largest, there is what ``predict`` predicts.

    Ranking trains on at most ``num_ranking`` clips of an inner split (10 per class or a quarter of them if that is more), drawn
    at random; None for all of them. See :class:`bridle.eval.ranking.Contest`.
    """

    name: str
    grid: tuple[float, ...]
    predict: Predict
    select: Predict
    probabilities: Probabilities
    num_ranking: int | None = None


@dataclass(frozen=True, slots=True)
class SplitResult:
    """One outer split: what was chosen, and its test clips (rows ``test_index``) with their ``predictions``."""

    name: str
    accuracy: float
    pooling: str
    parameter: float
    inner_accuracy: float
    num_train: int
    test_index: tuple[int, ...]
    predictions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Mean accuracy over splits in [0, 1] with its 95 % interval; ``bridle.config.to_dict`` makes it plain data."""

    probe: str
    accuracy: float
    low: float
    high: float
    interval: str
    splits: tuple[SplitResult, ...]
    notes: tuple[str, ...]


def linear_probe(strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)) -> Probe:
    """Logistic regression, C chosen among ``strengths``: ranked in float32, the chosen one fitted in float64."""
    # Ranking needs classes, not weights: 1e-4 takes twice the time (400 clips, 2048 columns) and ranks no better.
    select = partial(linear_predictions, tolerance=1e-3, max_iterations=100, dtype=torch.float32)
    return Probe("linear", tuple(strengths), linear_predictions, select, linear_probabilities, num_ranking=1000)


def knn_probe(ks: Sequence[int] = (1, 3, 5, 10, 20, 50), temperature: float | None = 0.07) -> Probe:
    """Cosine nearest neighbours, k chosen among ``ks``; ``temperature`` None gives plain votes."""
    predict = partial(knn_predictions, temperature=temperature)
    return Probe("knn", tuple(float(k) for k in ks), predict, predict, partial(knn_probabilities, temperature=temperature))


def evaluate(features: FeatureSet, probe: Probe, seed: int = 0) -> ProbeResult:
    """Nested evaluation of frozen features over the splits of :func:`choose_splits`.

    Pooling and parameter of an outer split are those of the best mean inner accuracy (ties: the earlier pooling, then
    the earlier parameter). A test clip whose class has no training clip is wrong, with a note. The interval is that of
    :func:`~bridle.eval.intervals.accuracy_interval`.

    Raises:
        DataError: the splits cannot be made (see the functions that make them), or a training part has one class.
    """
    splits = choose_splits(features, seed)
    for split in splits:
        present = {features.labels[i] for i in split.train_index}
        if len(present) < 2:
            raise DataError(
                f"the training part of split '{split.name}' has the single class '{min(present)}'; use other splits"
            )
    inner = [inner_splits(features, split, seed) for split in splits]
    ranking = Ranking(_contest(features, probe), inner, seed)
    results = tuple(
        _evaluate_split(features, split, probe, _choose(features, ranking, own))
        for split, own in zip(splits, inner, strict=True)
    )
    accuracies = [result.accuracy for result in results]
    interval = accuracy_interval(accuracies, [len(result.test_index) for result in results])
    mean = float(np.mean(accuracies))
    notes = _notes(features.labels, splits)
    return ProbeResult(probe.name, mean, interval.low, interval.high, interval.made, results, notes)


def choose_splits(features: FeatureSet, seed: int = 0) -> list[Split]:
    """The official folds or splits of a feature set, else 5 stratified ones.

    Raises:
        DataError: as the functions that make the splits; or a group is on both sides of an official split.
    """
    if features.folds is not None:
        splits = splits_from_folds(features.folds)
    elif features.splits is not None:
        splits = splits_from_split(features.splits)
    else:
        return stratified_splits(features.labels, seed=seed, groups=features.groups)
    if features.groups is not None:
        groups = np.asarray(features.groups)
        for split in splits:
            both = set(groups[split.train_index]) & set(groups[split.test_index])
            if both:
                raise DataError(f"group '{min(both)}' is on both sides of split '{split.name}'; correct one of them")
    return splits


def inner_splits(features: FeatureSet, split: Split, seed: int = 0) -> list[Split]:
    """Splits of the training part of ``split``, as row numbers of ``features``; test rows are not looked at.

    With official folds, each of the remaining ones is left out in turn (more than 10 are joined to 10); else, or when
    one fold remains, 4 stratified parts that respect the groups. Each tests at most ``MAX_INNER_TEST`` clips.

    Raises:
        DataError: the training part is a single clip or group.
    """
    rows = split.train_index
    labels = [features.labels[i] for i in rows]
    units = None if features.groups is None else [features.groups[i] for i in rows]
    limit = NUM_STRATIFIED_INNER
    if features.folds is not None and len({features.folds[i] for i in rows}) > 1:
        units, limit = [features.folds[i] for i in rows], MAX_INNER_FOLDS
    num = min(limit, len(rows) if units is None else len(set(units)))
    parts = stratified_splits(labels, num, seed, units)
    return [Split(part.name, rows[part.train_index], thin(rows[part.test_index], MAX_INNER_TEST, seed)) for part in parts]


def _contest(features: FeatureSet, probe: Probe) -> Contest:
    """All poolings and parameters, by accuracy."""
    labels = np.asarray(features.labels)

    def predicted(pooling: str, train: Indices, rows: Indices, grid: Sequence[float]) -> NDArray[Any]:
        return _predictions(features, pooling, train, rows, probe.select, grid)

    def accuracy(found: NDArray[Any], rows: Indices) -> NDArray[np.float64]:
        return np.asarray((found == labels[rows]).mean(axis=1))

    least = None if probe.num_ranking is None else max(probe.num_ranking, 10 * len(set(features.labels)))
    return Contest(list(features.pooled), probe.grid, predicted, accuracy, least)


def _choose(features: FeatureSet, ranking: Ranking, inner: Sequence[Split]) -> tuple[str, float, float]:
    """Pooling, parameter and mean inner accuracy of the best; inner splits that train on one class are left out."""
    usable = [split for split in inner if len({features.labels[i] for i in ranking.trained_on(split)}) > 1]
    if not usable:
        raise DataError("every inner split trains on a single class; use other folds, or none")
    return ranking.choose(usable)


def _evaluate_split(features: FeatureSet, split: Split, probe: Probe, chosen: tuple[str, float, float]) -> SplitResult:
    pooling, parameter, inner_accuracy = chosen
    predictions = _predictions(features, pooling, split.train_index, split.test_index, probe.predict, (parameter,))[0]
    right = [predicted == features.labels[i] for predicted, i in zip(predictions, split.test_index, strict=True)]
    return SplitResult(
        name=split.name,
        accuracy=sum(right) / len(right),
        pooling=pooling,
        parameter=parameter,
        inner_accuracy=inner_accuracy,
        num_train=len(split.train_index),
        test_index=tuple(split.test_index.tolist()),
        predictions=tuple(predictions.tolist()),
    )


def _predictions(
    features: FeatureSet, pooling: str, train: Indices, test: Indices, predict: Predict, grid: Sequence[float]
) -> NDArray[Any]:
    """Predicted class names (len(grid), number of test rows)."""
    rows = torch.as_tensor(features.pooled[pooling])
    classes, coded = np.unique(np.asarray(features.labels)[train], return_inverse=True)
    labels = torch.from_numpy(coded).to(rows.device)
    predicted = predict(rows[train], labels, rows[test], grid)
    return np.asarray(classes[predicted.cpu().numpy()])


def _check_features(name: str, values: Tensor, num_clips: int) -> None:
    if values.ndim != 2 or values.shape[0] != num_clips or values.shape[1] == 0:
        raise DataError(f"features '{name}' have shape {tuple(values.shape)}; it must be ({num_clips}, columns)")
    bad = (~torch.isfinite(values)).any(dim=1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise DataError(f"features '{name}' hold NaN or infinity in {int(bad.sum())} clips, first {first}; leave them out")


def _notes(labels: Sequence[str], splits: Sequence[Split]) -> tuple[str, ...]:
    notes = [f"split '{split.name}': {split.note}" for split in splits if split.note]
    for split in splits:
        missing = {labels[i] for i in split.test_index} - {labels[i] for i in split.train_index}
        if missing:
            num = sum(labels[i] in missing for i in split.test_index)
            notes.append(
                f"split '{split.name}': {count(num, 'test clip')} of classes without training clips ({len(missing)}, first "
                f"'{min(missing)}') count as wrong; add clips of these classes, or leave them out"
            )
    return tuple(notes)
