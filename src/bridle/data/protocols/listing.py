"""Rows of a set while its protocol puts them together, and how their files are found and probed."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bridle.data.manifest import Entry, Manifest
from bridle.data.medium import Medium
from bridle.data.quarantine import BadFile
from bridle.errors import DataError, DecodeError

_PROBE_SLAB = 10_000


@dataclass
class Listing:
    """What a protocol found: entries with their cells, bad files, and what is not there.

    Attributes:
        entries: one per clip.
        columns: one cell per entry in each.
        bad: files that the set names and that are missing.
        num_missing: clips not on the disk, of a set of which nobody has all.
        notes: what a reader of a result must know.
    """

    entries: list[Entry] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    bad: list[BadFile] = field(default_factory=list)
    num_missing: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, entry: Entry, cells: Mapping[str, str]) -> None:
        """Add a clip; all clips of a listing have cells of the same names."""
        self.entries.append(entry)
        for name, cell in cells.items():
            self.columns.setdefault(name, []).append(cell)

    def add_file(self, key: str, path: Path, cells: Mapping[str, str]) -> None:
        """Add a plain file, which is a bad file if it is not there."""
        if path.is_file():
            self.add(Entry(key, str(path)), cells)
        else:
            self.bad.append(BadFile(key, "missing"))

    def manifest(self, medium: Medium, probe: bool, num_threads: int) -> Manifest:
        """The manifest; of sounds and films the headers are read if ``probe`` says so, and unreadable files become bad ones."""
        if not (probe and medium.timed):
            return Manifest(tuple(self.entries), self.columns, tuple(self.bad))
        results = list(_probed(self.entries, medium, num_threads))
        kept = [row for row, result in enumerate(results) if isinstance(result, Entry)]
        unreadable = [result for result in results if isinstance(result, BadFile)]
        columns = {name: [cells[row] for row in kept] for name, cells in self.columns.items()}
        entries = tuple(result for result in results if isinstance(result, Entry))
        return Manifest(entries, columns, (*self.bad, *unreadable))


def _probed(entries: Sequence[Entry], medium: Medium, num_threads: int) -> Iterator[Entry | BadFile]:
    def probe(entry: Entry) -> Entry | BadFile:
        try:
            with entry.opened() as source:
                return entry.with_info(medium.probe(source, entry.key))
        except (DecodeError, OSError) as error:
            return BadFile.of(entry, error)

    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(entries), _PROBE_SLAB):  # bounds the number of pending futures
            yield from pool.map(probe, entries[start : start + _PROBE_SLAB])


def files_below(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Files of the given suffixes (lower case) in a folder and all below it, in a fixed order.

    Hidden folders and files are passed over, and a folder reached twice through symbolic links is read once.
    """
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122 - for millions of files
                yield Path(place, name)


def table_rows(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a table of comma-separated values by column, whatever its suffix.

    Raises:
        DataError: it is malformed, or lacks a needed column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, restval="", strict=True)
            names = rows.fieldnames or ()
            lacking = next((name for name in needed if name not in names), None)
            if lacking is not None:
                raise DataError(f"{path} has no column '{lacking}' but {', '.join(names)}; is it the published table?")
            for row in rows:
                if None in row:
                    raise DataError(f"{path} line {rows.line_num} has more cells than its {len(names)} columns")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def lines_of(path: Path) -> list[str]:
    """Lines of a text file without empty ones.

    Raises:
        DataError: it cannot be read as UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def subfolders(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[Path]:
    """Folders in a folder, hidden ones left out, sorted by name."""
    with os.scandir(folder) as children:  # asks the disk about no file, of which there may be millions
        found = [child.name for child in children if not child.name.startswith(".") and wanted(child.name) and child.is_dir()]
    return [folder / name for name in sorted(found)]
