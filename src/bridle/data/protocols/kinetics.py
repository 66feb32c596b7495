"""Kinetics-400, -600 and -700: the published CSVs or lists of ``path label``; val is what the field tests on."""

from __future__ import annotations

import re
from pathlib import Path

from bridle.data.manifest import Entry
from bridle.data.medium import VIDEO
from bridle.data.protocols.base import Request
from bridle.data.protocols.listing import Listing, files_below, lines_of, table_rows
from bridle.errors import DataError

_PARTS = {"train": ("train", "train"), "validate": ("val", "test"), "validation": ("val", "test"), "val": ("val", "test")}
_NAME = re.compile(r"(?:.*[-_.])?(train|validate|validation|val)", re.IGNORECASE)
_BELOW = ("", "annotations")
_NUMBERED = re.compile(r"(?P<path>.+?)[ ,\t]+(?P<label>\d+)")


def read_kinetics(request: Request) -> Listing:
    """The clips of ``train`` and ``val`` that are on the disk.

    Tables are called ``train.csv``, ``val.csv``, ``kinetics-400_train.csv`` or the like, in the folder or in
    ``annotations``. Where there are both, ``.txt`` comes before ``.csv``: of Kinetics-600 the CSVs are incomplete.
    Columns: ``label``, ``split`` (train, test) and ``youtube_id``; of a list of ``path label`` the id is "".

    Raises:
        DataError: there is no table of a part, or it is malformed.
    """
    root = next((folder for folder in request.folders() if _tables(folder)), request.folder)
    tables = _tables(root)
    for part in ("train", "val"):
        if part not in tables:
            raise request.lacks(root, f"{part}.csv")
    listing = Listing()
    published = {part: _is_published(path) for part, path in tables.items()}
    clips = {path.stem: path for path in files_below(root, VIDEO.suffixes)} if any(published.values()) else {}
    for part, path in tables.items():
        split = _PARTS[part][1]
        if published[part]:
            _add_published(listing, root, path, split, clips)
        else:
            _add_numbered(listing, root, path, split)
    if not all(published.values()):
        listing.notes.append("labels are the numbers of the lists, which do not tell what the classes are called")
    return listing


def _tables(root: Path) -> dict[str, Path]:
    """The table of each part that there is."""
    found: dict[str, list[Path]] = {}
    for folder in _BELOW:
        for path in sorted((root / folder).glob("*.*")) if (root / folder).is_dir() else ():
            match = _NAME.fullmatch(path.stem)
            if match is not None and path.suffix in (".csv", ".txt"):
                found.setdefault(_PARTS[match[1].lower()][0], []).append(path)
    # The plainest name first, then .txt.
    return {part: min(paths, key=lambda path: (len(path.stem), path.suffix != ".txt", path)) for part, paths in found.items()}


def _is_published(path: Path) -> bool:
    lines = lines_of(path)
    if not lines:
        raise DataError(f"{path} is empty; it must be the published table, or a list of 'path label'")
    return "youtube_id" in lines[0]


def _add_published(listing: Listing, root: Path, table: Path, split: str, clips: dict[str, Path]) -> None:
    for row in table_rows(table, ("label", "youtube_id", "time_start", "time_end")):
        name = row["youtube_id"]
        try:
            start, end = int(float(row["time_start"])), int(float(row["time_end"]))
        except ValueError:
            raise DataError(
                f"{table}: clip {name} is from '{row['time_start']}' to '{row['time_end']}'; both must be seconds"
            ) from None
        stems = (f"{name}_{start:06d}_{end:06d}", f"{name}_{start}_{end}", name)
        path = next((clips[stem] for stem in stems if stem in clips), None)
        if path is None:
            listing.num_missing += 1
        else:
            cells = {"label": row["label"], "split": split, "youtube_id": name}
            listing.add(Entry(path.relative_to(root).as_posix(), str(path)), cells)


def _add_numbered(listing: Listing, root: Path, table: Path, split: str) -> None:
    for number, line in enumerate(lines_of(table), 1):
        match = _NUMBERED.fullmatch(line)
        if match is None:
            raise DataError(
                f"{table} line {number} is '{line}'; it must be a path and the number of a class, 'abseiling/x.mp4 0'"
            )
        name = match["path"]
        places = (root / name, table.parent / name, root / table.stem / name)  # an absolute path stays itself
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            listing.num_missing += 1
        else:
            listing.add(Entry(name, str(path)), {"label": match["label"], "split": split, "youtube_id": ""})
