"""AudioSet (J. F. Gemmeke et al. 2017): the published CSVs, and clips on the disk found by their YouTube id."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from bridle.data.manifest import Entry
from bridle.data.medium import AUDIO
from bridle.data.protocols.base import Request
from bridle.data.protocols.listing import Listing, files_below, table_rows
from bridle.errors import DataError

SEPARATOR = ";"  # display names hold commas
_CLASSES = "class_labels_indices.csv"
_SEGMENTS = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
_BELOW = ("metadata", "meta", "csv", "csvs", "annotations")
_NAME = re.compile(r"Y?(?P<id>[\w-]{11})(?:_\d+(?:\.\d+)?){0,2}", re.ASCII)


def read_audioset(request: Request, *, parts: tuple[str, ...]) -> Listing:
    """The clips of some parts that are on the disk.

    Columns: ``ytid``, ``part``, ``split`` (train, test), ``start_seconds``, ``end_seconds``, ``labels`` (display names,
    joined by ``SEPARATOR``) and ``mids`` (as published).

    Args:
        request: what to read.
        parts: of ``balanced``, ``unbalanced`` and ``eval``.

    Raises:
        DataError: a CSV is missing or malformed, or names a class that the list of classes lacks.
    """
    root = request.root(*(f"{folder}/{_SEGMENTS['eval']}".lstrip("/") for folder in ("", *_BELOW)))
    names = _class_names(request.file(root, _CLASSES, *_BELOW))
    tables = {part: request.file(root, _SEGMENTS[part], *_BELOW) for part in parts}
    paths = _clips_by_id(root)
    listing = Listing()
    for part, table in tables.items():
        for row in _segments(table, part, names):
            path = paths.get(row["ytid"])
            if path is None:
                listing.num_missing += 1
            else:
                listing.add(Entry(Path(path).relative_to(root).as_posix(), path), row)
    return listing


def clip_id(stem: str) -> str | None:
    """The YouTube id that a file's name without suffix stands for: ``ID``, ``YID``, ``ID_30``, ``ID_30.000_40.000``; or None.

    An id has 11 letters, digits, ``_`` and ``-``. No name can stand for two of them.
    """
    match = _NAME.fullmatch(stem)
    return None if match is None else match["id"]


def _clips_by_id(root: Path) -> dict[str, str]:
    """The first file of each id; any of 11 characters, which need not be one of the set's."""
    found: dict[str, str] = {}
    for path in files_below(root, AUDIO.suffixes):
        name = clip_id(path.stem)
        if name is not None:
            found.setdefault(name, str(path))
    return found


def _class_names(path: Path) -> dict[str, str]:
    names = {row["mid"]: row["display_name"] for row in table_rows(path, ("index", "mid", "display_name"))}
    bad = next((name for name in names.values() if SEPARATOR in name), None)
    if bad is not None:
        raise DataError(
            f"{path} has the class '{bad}'; a '{SEPARATOR}' stands between the labels of a clip: is it the published list?"
        )
    return names


def _segments(path: Path, part: str, names: dict[str, str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV of segments: ``YTID, start_seconds, end_seconds, "mid,mid"`` behind comment lines."""
    split = "test" if part == "eval" else "train"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for cells in csv.reader((line for line in stream if not line.startswith("#")), skipinitialspace=True):
                if not cells:
                    continue
                if len(cells) != 4:
                    raise DataError(
                        f"{path}: '{', '.join(cells)}' has {len(cells)} cells; a segment has 4: is it the published table?"
                    )
                mids = [mid.strip() for mid in cells[3].split(",")]
                unknown = next((mid for mid in mids if mid not in names), None)
                if unknown is not None:
                    raise DataError(f"{path}: segment {cells[0]} has the label '{unknown}', which {_CLASSES} lacks")
                yield {
                    "ytid": cells[0],
                    "part": part,
                    "split": split,
                    "start_seconds": cells[1],
                    "end_seconds": cells[2],
                    "labels": SEPARATOR.join(names[mid] for mid in mids),
                    "mids": ",".join(mids),
                }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
