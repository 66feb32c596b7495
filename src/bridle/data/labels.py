"""Cells of a manifest's column to classes: one for each clip, or any number of tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.errors import DataError

SEPARATOR = ","


@dataclass(frozen=True, eq=False)
class ClassLabels:
    """One class for each of N clips: ``index`` (N,) int64 into ``classes``."""

    classes: tuple[str, ...]
    index: Tensor


@dataclass(frozen=True, eq=False)
class TagLabels:
    """Any number of tags for each of N clips: ``targets`` (N, C) bool, a column for each of ``classes``."""

    classes: tuple[str, ...]
    targets: Tensor


Labels = ClassLabels | TagLabels


def class_labels(cells: Sequence[str], classes: Sequence[str] | None = None) -> ClassLabels:
    """Classes by name, without the blanks around them.

    Args:
        cells: one for each clip.
        classes: in their order; None for the sorted names of the cells.

    Raises:
        DataError: an empty cell, a name that is none of ``classes``, one that is there twice, or fewer than 2 classes.
    """
    names = [cell.strip() for cell in cells]
    if "" in names:
        raise DataError(f"row {names.index('')} has no label; leave the row out")
    known = _known(set(names), classes)
    return ClassLabels(tuple(known), torch.tensor([known[name] for name in names], dtype=torch.int64))


def tag_labels(cells: Sequence[str], separator: str = SEPARATOR, classes: Sequence[str] | None = None) -> TagLabels:
    """Tags by name, without the blanks around them. A cell without any is a clip of no class.

    Args:
        cells: one for each clip.
        separator: stands between the tags of a cell.
        classes: in their order; None for the sorted names of the cells.

    Raises:
        DataError: the separator is empty, a name is none of ``classes``, or is there twice, or there are fewer than 2 classes.
    """
    if not separator:
        raise DataError("the separator of labels is empty; give the character that stands between them, such as ','")
    rows = [{name.strip() for name in cell.split(separator)} - {""} for cell in cells]
    known = _known(set().union(*rows), classes)
    targets = torch.zeros(len(rows), len(known), dtype=torch.bool)
    for target, row in zip(targets, rows, strict=True):
        target[[known[name] for name in row]] = True
    return TagLabels(tuple(known), targets)


def read_labels(
    cells: Sequence[str], multi_label: bool, separator: str = SEPARATOR, classes: Sequence[str] | None = None
) -> Labels:
    """:func:`tag_labels` when ``multi_label``, else :func:`class_labels`."""
    return tag_labels(cells, separator, classes) if multi_label else class_labels(cells, classes)


def take(labels: Labels, rows: Sequence[int]) -> Labels:
    """Those of some clips, in the order of ``rows``."""
    index = torch.tensor(rows, dtype=torch.int64)
    if isinstance(labels, TagLabels):
        return TagLabels(labels.classes, labels.targets[index])
    return ClassLabels(labels.classes, labels.index[index])


def target_values(labels: Labels) -> Tensor:
    """(N, C) float32, 1 where a clip is of a class."""
    if isinstance(labels, TagLabels):
        return labels.targets.float()
    return torch.nn.functional.one_hot(labels.index, len(labels.classes)).float()


def _known(names: set[str], classes: Sequence[str] | None) -> dict[str, int]:
    """Number of each class."""
    known = {name: number for number, name in enumerate(sorted(names) if classes is None else classes)}
    if classes is not None and len(known) < len(classes):
        twice = next(name for name in known if list(classes).count(name) > 1)
        raise DataError(f"class '{twice}' is given twice; name each class once")
    unknown = sorted(names - set(known))
    if unknown:
        raise DataError(f"label '{unknown[0]}' is none of the {len(known)} classes; the first are {', '.join(list(known)[:5])}")
    if len(known) < 2:
        raise DataError(f"the labels hold {len(known)} class{'' if len(known) == 1 else 'es'}; at least 2 are needed")
    return known
