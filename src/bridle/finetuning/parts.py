"""Which labelled clips train, which choose the epoch and which test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from typing import Literal

import numpy as np

from bridle.data.columns import Columns, check_repeated, with_cells
from bridle.data.manifest import Manifest
from bridle.errors import ConfigError, DataError
from bridle.eval.splits import Indices, splits_from_folds, splits_from_split, stratified_splits
from bridle.randomness import permutation
from bridle.wording import count

Untagged = Literal["left_out", "negative"]
_VALIDATION = ("validation", "valid", "val", "dev")
_MOST_SPLITS = 20  # some of which make up a share that is not one n-th


@dataclass(frozen=True)
class PartConfig:
    """How labelled clips are parted.

    Attributes:
        columns: of labels, and of fold, split and group where there are some.
        fold: test this fold alone; None for each in turn.
        test_ratio: share of the clips that test when there is neither fold nor split; 0 for none.
        validation_ratio: share of the training clips that choose the epoch; 0 for none but those of the split column.
        clips_per_class: most training clips of each label, drawn by the seed; 0 for all.
        seed: of the shares.
        separator: between the labels of a cell; None for one label a clip.
        untagged: clips with an empty cell are ``left_out``, or of no class, ``negative``, where a clip may have several labels.

    Raises:
        ConfigError: a share outside [0, 0.5], a fold without a column of folds, or negatives where each clip has one label.
    """

    columns: Columns
    fold: str | None = None
    test_ratio: float = 0.2
    validation_ratio: float = 0.0
    clips_per_class: int = 0
    seed: int = 0
    separator: str | None = None
    untagged: Untagged = "left_out"

    def __post_init__(self) -> None:
        for name in ("test_ratio", "validation_ratio"):
            if not 0.0 <= getattr(self, name) <= 0.5:
                raise ConfigError(f"{name}={getattr(self, name)} must lie between 0 and 0.5")
        if self.clips_per_class < 0:
            raise ConfigError(f"clips_per_class={self.clips_per_class} must be at least 1, or 0 for all clips")
        if self.untagged == "negative" and self.separator is None:
            raise ConfigError("untagged=negative is for clips of several labels: add --multi-label, or leave it out")
        if self.fold is not None and self.columns.fold is None:
            raise ConfigError(f"fold {self.fold!r} is asked for, and no column of folds is named: add --fold COLUMN")


@dataclass(frozen=True)
class Part:
    """Rows of a manifest for one run, ascending, disjoint.

    Attributes:
        name: of the fold; ``""`` when there is one run only.
        train: clips that are learnt from.
        validation: clips that choose the epoch; may be empty.
        test: clips that measure it in the end; may be empty.
        notes: what a reader of the result must know.
    """

    name: str
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notes: tuple[str, ...] = ()


def part_clips(manifest: Manifest, config: PartConfig) -> tuple[Manifest, list[Part]]:
    """The labelled clips, and which of them are for what, for every run that is to be made.

    Returns:
        The clips that have a cell in every column that is used, and one part for each run, rows of that manifest.

    Raises:
        DataError: a column or fold that does not exist, a split that is none, or no clip that trains.
    """
    manifest, notes = with_cells(manifest, config.columns, config.untagged == "negative")
    if config.separator is None:
        check_repeated(manifest.columns[config.columns.label], config.columns.label)
    if manifest.bad:
        first = manifest.bad[0]
        notes.append(f"left out: {count(len(manifest.bad), 'unreadable file')}, first {first.key} ({first.reason})")
    parts = [_with_validation(part, manifest, config) for part in _outer(manifest, config)]
    if config.clips_per_class:
        parts = [replace(part, train=_few(part.train, manifest, config)) for part in parts]
    found = []
    for part in parts:
        if not part.train:
            raise DataError(f"no clip is left to train on{f' in fold {part.name}' if part.name else ''}; use other splits")
        found.append(replace(part, notes=(*notes, *part.notes, *_missing(manifest, part, config))))
    return manifest, found


def _outer(manifest: Manifest, config: PartConfig) -> list[Part]:
    columns = config.columns
    groups = None if columns.group is None else manifest.columns[columns.group]
    if columns.fold is not None:
        splits = splits_from_folds(manifest.columns[columns.fold])
        names = [split.name for split in splits]
        odd = next((name for name in names if name in (".", "..") or "/" in name or "\\" in name), None)
        if odd is not None:
            raise DataError(f"fold '{odd}' cannot name a folder; name folds without slashes in column '{columns.fold}'")
        if config.fold is not None and config.fold not in names:
            raise DataError(f"there is no fold '{config.fold}' in column '{columns.fold}'; there are {', '.join(names)}")
        chosen = [split for split in splits if config.fold in (None, split.name)]
        parts = [Part(split.name, _rows(split.train_index), (), _rows(split.test_index)) for split in chosen]
    elif columns.split is not None:
        cells = manifest.columns[columns.split]
        (split,) = splits_from_split(cells)
        validation = np.flatnonzero([cell.strip().lower() in _VALIDATION for cell in cells])
        parts = [Part("", _rows(np.setdiff1d(split.train_index, validation)), _rows(validation), _rows(split.test_index))]
    elif config.test_ratio:
        train, test = _share(manifest, np.arange(len(manifest)), config.test_ratio, config)
        share = f"{100 * config.test_ratio:g} % of the clips, drawn by class, are tested"
        parts = [Part("", _rows(train), (), _rows(test), (f"{share}; there is neither fold nor split",))]
    else:
        parts = [Part("", tuple(range(len(manifest))), (), ())]
    if groups is not None:
        for part in parts:
            _check_groups(groups, part)
    return parts


def _check_groups(groups: Sequence[str], part: Part) -> None:
    sides = (("training", part.train), ("validation", part.validation), ("test", part.test))
    for (first, some), (second, others) in combinations(sides, 2):
        both = {groups[row] for row in some} & {groups[row] for row in others}
        if both:
            raise DataError(f"group '{min(both)}' is among the {first} and the {second} clips; correct the split or the groups")


def _with_validation(part: Part, manifest: Manifest, config: PartConfig) -> Part:
    """The part, with a share of its training clips taken for the choice of the epoch when there is none for it yet."""
    if part.validation or not config.validation_ratio or not part.train:
        return part
    train, validation = _share(manifest, np.asarray(part.train), config.validation_ratio, config)
    return replace(part, train=_rows(train), validation=_rows(validation))


def _share(manifest: Manifest, rows: Indices, ratio: float, config: PartConfig) -> tuple[Indices, Indices]:
    """The rows without about ``ratio`` of them, and these: stratified by label, groups kept together."""
    columns = config.columns
    labels = [manifest.columns[columns.label][row].strip() for row in rows]
    groups = None if columns.group is None else [manifest.columns[columns.group][row] for row in rows]
    most = min(_MOST_SPLITS, len(rows) if groups is None else len(set(groups)))
    share = Fraction(ratio).limit_denominator(max(most, round(1 / ratio)))
    if groups is not None and len(set(groups)) < share.denominator:
        smaller = f"take a share of {1 / len(set(groups)):.2g}, or " if len(set(groups)) > 1 else ""
        raise DataError(
            f"{count(len(set(groups)), 'group')} in column '{columns.group}' cannot give a share of {ratio:g} of the clips; "
            f"{smaller}name the parts with --split or --fold, or leave --group out"
        )
    splits = stratified_splits(labels, share.denominator, config.seed, groups)[: share.numerator]
    taken = np.sort(np.concatenate([split.test_index for split in splits]))
    if groups is None and config.separator is None:  # a class of a single clip could not be learnt without it
        common = Counter(labels)
        taken = taken[[common[labels[number]] > 1 for number in taken]]
    return np.delete(rows, taken), rows[taken]


def _few(rows: Sequence[int], manifest: Manifest, config: PartConfig) -> tuple[int, ...]:
    """At most ``clips_per_class`` rows of each label."""
    taken: Counter[str] = Counter()
    found = []
    for number in permutation(len(rows), config.seed, "few").tolist():
        labels = _labels(manifest, rows[number], config) or {""}  # clips of no class count as one
        if all(taken[label] < config.clips_per_class for label in labels):
            taken.update(labels)
            found.append(rows[number])
    return tuple(sorted(found))


def _missing(manifest: Manifest, part: Part, config: PartConfig) -> list[str]:
    known = {label for row in part.train for label in _labels(manifest, row, config)}
    where = f"fold {part.name}: " if part.name else ""
    notes = []
    for role, rows in (("validation", part.validation), ("test", part.test)):
        unknown = [labels for row in rows if (labels := sorted(_labels(manifest, row, config) - known))]
        if unknown:
            clips = count(len(unknown), f"{role} clip")
            notes.append(f"{where}{clips} with labels that no training clip has, first '{unknown[0][0]}'")
    return notes


def _labels(manifest: Manifest, row: int, config: PartConfig) -> set[str]:
    cell = manifest.columns[config.columns.label][row]
    return {name.strip() for name in (cell.split(config.separator) if config.separator else [cell])} - {""}


def _rows(index: Indices) -> tuple[int, ...]:
    return tuple(sorted(int(row) for row in index))
