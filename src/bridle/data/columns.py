"""Which columns of a manifest say what, and the clips that have a value in them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bridle.data.entries import Entries, Manifest
from bridle.errors import DataError
from bridle.wording import count

_EMPTY = ("", "nan")  # tables that were written with missing values say nan


@dataclass(frozen=True)
class Columns:
    """Which columns of the manifest say what.

    Attributes:
        label: the class of each clip.
        fold: the official fold, left out in turn; or None.
        split: train, validation or test; or None. Not together with ``fold``.
        group: clips of one group are never on both sides of a split; or None.

    Raises:
        DataError: both ``fold`` and ``split``.
    """

    label: str
    fold: str | None = None
    split: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.fold is not None and self.split is not None:
            raise DataError(f"fold '{self.fold}' and split '{self.split}' are both given; name the official one only")

    @property
    def named(self) -> dict[str, str]:
        """Role -> column, of those that are given."""
        roles = {"label": self.label, "fold": self.fold, "split": self.split, "group": self.group}
        return {role: column for role, column in roles.items() if column is not None}


def value_of(cell: str) -> str:
    """A cell without the blanks around it; empty when it says ``nan``."""
    value = cell.strip()
    return "" if value.lower() in _EMPTY else value


def with_cells(manifest: Manifest, columns: Columns, untagged: bool = False) -> tuple[Manifest, list[str]]:
    """The clips with a value (:func:`value_of`) in every column that is used, and notes about the others.

    Args:
        manifest: the clips; of those that stay, the cells of used columns lose the blanks around them.
        columns: that are used.
        untagged: keep clips without a label: they are of no class.

    Raises:
        DataError: there is no such column (names the nearest), or no clip is left.
    """
    for role, column in columns.named.items():
        if column not in manifest.columns:
            raise DataError(_no_column(role, column, list(manifest.columns)))
    unused = [name for name in ("fold", "split") if name in manifest.columns and name not in columns.named.values()]
    notes = []
    if unused and columns.fold is None and columns.split is None:
        notes.append(
            f"the manifest's column '{unused[0]}' is not used; where it is the official one, ask for --{unused[0]} {unused[0]}"
        )
    used = {column: [value_of(cell) for cell in manifest.columns[column]] for column in columns.named.values()}
    manifest = replace(manifest, columns={**manifest.columns, **used})
    kept = list(range(len(manifest)))
    for role, column in columns.named.items():
        filled = [row for row in kept if manifest.columns[column][row] or (untagged and role == "label")]
        if len(filled) < len(kept):
            notes.append(f"left out: {count(len(kept) - len(filled), 'clip')} without {role} (column '{column}')")
        if not filled:
            raise DataError(f"no clip that is left has a {role} (column '{column}'); fill it in")
        kept = filled
    return subset(manifest, kept), notes


def check_repeated(labels: Sequence[str], column: str) -> None:
    """Refuse labels of which none occurs twice: no clip could be told by another.

    Raises:
        DataError: all of them occur once.
    """
    if len(labels) > 1 and len(set(labels)) == len(labels):
        raise DataError(
            f"every one of the {count(len(labels), 'clip')} has a label of its own in column '{column}'; name the column with "
            "the classes, or add clips of the same classes"
        )


def subset(manifest: Manifest, rows: Sequence[int]) -> Manifest:
    """Some rows of a manifest, in the order of ``rows``."""
    columns = {name: [cells[row] for row in rows] for name, cells in manifest.columns.items()}
    return Manifest(Entries.of(manifest.entries[row] for row in rows), columns, manifest.bad)


def _no_column(role: str, column: str, names: list[str]) -> str:
    if not names:
        return (
            f"there is no {role} column '{column}': the manifest has no columns; give a CSV or parquet table with one, "
            "or a folder with one folder for each class"
        )
    near = difflib.get_close_matches(column, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    without = "" if role == "label" else f"; without --{role}, parts of the clips are drawn by class"
    return f"there is no {role} column '{column}'; the columns are {', '.join(names)}{hint}{without}"
