"""Which clips train and which test: official folds, an official split, or stratified parts that respect groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridle.errors import DataError
from bridle.randomness import permutation

Indices = NDArray[np.int64]

_TRAIN = ("train", "training")
_VALIDATION = ("validation", "valid", "val", "dev")
_TEST = ("test", "testing")


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of one training and one test part, ascending. ``note`` says what a reader of the result must know."""

    name: str
    train_index: Indices
    test_index: Indices
    note: str = ""


def splits_from_folds(fold_values: Sequence[str]) -> list[Split]:
    """Leave one fold out, in the order of the folds' names, shorter names first (so 10 follows 9).

    Raises:
        DataError: fewer than 2 folds.
    """
    names = sorted(set(fold_values), key=lambda name: (len(name), name))
    if len(names) < 2:
        raise DataError(f"{len(names)} fold(s) found; leaving one out needs at least 2: name another column, or no --fold")
    values = np.asarray(fold_values)
    return [Split(name, np.flatnonzero(values != name), np.flatnonzero(values == name)) for name in names]


def splits_from_split(split_values: Sequence[str]) -> list[Split]:
    """The one official split. Validation clips join the training part, with a note: choices are made inside it anyway.

    Raises:
        DataError: a name that is none of train, validation and test (or a usual variant), or an empty part.
    """
    names = np.asarray([value.strip().lower() for value in split_values])
    unknown = sorted(set(names) - {*_TRAIN, *_VALIDATION, *_TEST})
    if unknown:
        raise DataError(f"split '{unknown[0]}' is unknown; known are {', '.join(_TRAIN + _VALIDATION + _TEST)}")
    validation, test = np.isin(names, _VALIDATION), np.isin(names, _TEST)
    if test.all() or not test.any():
        raise DataError(f"{int(test.sum())} of {len(names)} clips are test clips; both parts need at least 1")
    note = f"{int(validation.sum())} validation clips count as training clips" if validation.any() else ""
    return [Split("test", np.flatnonzero(~test), np.flatnonzero(test), note)]


def stratified_splits(labels: Sequence[str], num: int = 5, seed: int = 0, groups: Sequence[str] | None = None) -> list[Split]:
    """``num`` splits whose test parts are disjoint, cover all clips and have nearly equal shares of every class.

    Clips of one group stay together. A class of one clip is in one test part and then in no training part.

    Raises:
        DataError: ``num`` below 2 or above the number of clips (or groups).
    """
    units = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num_units = len(np.unique(units))
    if not 2 <= num <= num_units:
        remedy = "add clips"
        if groups is not None:
            remedy += " of other groups, name the groups as --fold (each is left out in turn), or give no --group"
        raise DataError(f"{num} splits need as many clips or groups, and there are {num_units}: {remedy}")
    part = _deal(np.unique(np.asarray(labels), return_inverse=True)[1], units, num, seed)
    return [Split(str(i), np.flatnonzero(part != i), np.flatnonzero(part == i)) for i in range(num)]


def _deal(labels: Indices, units: Indices, num: int, seed: int) -> Indices:
    """Part of every row: units, large ones first, go one by one to the part that has least of their classes."""
    rows_of = np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])
    shuffled = [rows_of[i] for i in permutation(len(rows_of), seed, "stratified").tolist()]
    totals = np.bincount(labels)
    counts = np.zeros((num, len(totals)))
    part = np.empty(len(labels), dtype=np.int64)
    for rows in sorted(shuffled, key=len, reverse=True):
        unit = np.bincount(labels[rows], minlength=len(totals))
        target = np.lexsort((counts.sum(axis=1), counts @ (unit / totals)))[0]
        counts[target] += unit
        part[rows] = target
    return part
