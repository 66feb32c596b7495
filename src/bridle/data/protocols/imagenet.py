"""ImageNet of the ILSVRC 2012 to 2017: training pictures by class, and the validation pictures, which the field tests on."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from bridle.data.manifest import Entry
from bridle.data.medium import IMAGE
from bridle.data.protocols.base import Request
from bridle.data.protocols.listing import Listing, lines_of, subfolders, table_rows
from bridle.data.quarantine import BadFile
from bridle.errors import ConfigError, DataError

_WNID = re.compile(r"n\d{8}")
_KAGGLE = "ILSVRC/Data/CLS-LOC"
_DEVKITS = ("", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "devkit/data", "data")
_SOLUTION, _TRUTH, _MAPPING = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "LOC_synset_mapping.txt"
_MAP, _META = "map_clsloc.txt", "meta.mat"


def read_imagenet(request: Request) -> Listing:
    """``train/WNID/*.JPEG`` and ``val``, in folders of classes or flat with a ground truth.

    Columns: ``wnid``, ``name`` ("" where no file tells it) and ``split`` (train, test).

    Raises:
        DataError: ``train``, ``val`` or the ground truth of a flat ``val`` is missing, or they do not fit together.
        ConfigError: ``meta.mat`` is needed and scipy is not installed.
    """
    top = request.root("train/", f"{_KAGGLE}/train/")
    root = top / _KAGGLE if (top / _KAGGLE).is_dir() else top
    if not (root / "val").is_dir():
        raise request.lacks(root, "folder val")
    names = _class_names(top)
    listing = Listing()
    _add_classes(listing, root, "train", "train", names)
    if not listing.entries:
        raise request.lacks(root, "pictures in train/WNID/ (n01440764 and so on)")
    if subfolders(root / "val", _is_wnid):
        _add_classes(listing, root, "val", "test", names)
    else:
        _add_flat(request, listing, (top, root), names)
    return listing


def _is_wnid(name: str) -> bool:
    return _WNID.fullmatch(name) is not None


def _pictures(folder: Path) -> list[str]:
    with os.scandir(folder) as children:
        found = [child.name for child in children if os.path.splitext(child.name)[1].lower() in IMAGE.suffixes]  # noqa: PTH122
    return sorted(name for name in found if not name.startswith("."))


def _cells(wnid: str, split: str, names: dict[str, str]) -> dict[str, str]:
    return {"wnid": wnid, "name": names.get(wnid, ""), "split": split}


def _add_classes(listing: Listing, root: Path, part: str, split: str, names: dict[str, str]) -> None:
    for folder in subfolders(root / part, _is_wnid):
        cells = _cells(folder.name, split, names)
        for name in _pictures(folder):
            listing.add(Entry(f"{part}/{folder.name}/{name}", f"{folder}/{name}"), cells)


def _add_flat(request: Request, listing: Listing, roots: tuple[Path, Path], names: dict[str, str]) -> None:
    top, root = roots
    truth = _truth(request, top)
    there = {name.rpartition(".")[0]: name for name in _pictures(root / "val")}
    unknown = next((name for stem, name in there.items() if stem not in truth), None)
    if unknown is not None:
        raise DataError(
            f"{root / 'val' / unknown} is not in the ground truth, which has {len(truth)} pictures such as {min(truth)}"
        )
    for stem, wnid in sorted(truth.items()):
        if stem in there:
            listing.add(Entry(f"val/{there[stem]}", str(root / "val" / there[stem])), _cells(wnid, "test", names))
        else:
            listing.bad.append(BadFile(f"val/{stem}.JPEG", "missing"))


def _truth(request: Request, top: Path) -> dict[str, str]:
    """WordNet id by the name of a validation picture without suffix."""
    if (top / _SOLUTION).is_file():
        rows = table_rows(top / _SOLUTION, ("ImageId", "PredictionString"))
        # Boxes follow the class; a picture has one class, however many boxes.
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows if row["PredictionString"].strip()}
    path = next((top / folder / _TRUTH for folder in _DEVKITS if (top / folder / _TRUTH).is_file()), None)
    if path is None:
        raise request.lacks(top, f"folders of classes in val, and no {_SOLUTION} or {_TRUTH} beside it")
    wnids = {number: wnid for number, wnid, _ in _synsets(top)}
    if not wnids:
        raise request.lacks(top, f"{_MAP} or {_META} of the devkit, which says what class the numbers in {path.name} are")
    truth = {}
    for row, line in enumerate(lines_of(path), 1):
        if not line.isdecimal() or int(line) not in wnids:
            raise DataError(f"{path} line {row} is '{line}'; it must be a number of one of the {len(wnids)} classes")
        truth[f"ILSVRC2012_val_{row:08d}"] = wnids[int(line)]
    return truth


def _class_names(top: Path) -> dict[str, str]:
    """What the classes are called, by WordNet id, where a file tells it that needs no further library."""
    if (top / _MAPPING).is_file():
        return {wnid: name for wnid, _, name in (line.partition(" ") for line in lines_of(top / _MAPPING))}
    path = next((top / folder / _MAP for folder in _DEVKITS if (top / folder / _MAP).is_file()), None)
    return {} if path is None else {wnid: name for _, wnid, name in _map_rows(path)}


def _synsets(top: Path) -> list[tuple[int, str, str]]:
    """Number in the challenge, WordNet id and name of every class of the devkit; none without a devkit."""
    for folder in _DEVKITS:
        if (top / folder / _MAP).is_file():
            return _map_rows(top / folder / _MAP)
        if (top / folder / _META).is_file():
            return _mat_rows(top / folder / _META)
    return []


def _map_rows(path: Path) -> list[tuple[int, str, str]]:
    """Rows of ``map_clsloc.txt``: ``n02119789 1 kit_fox``."""
    rows = []
    for line in lines_of(path):
        cells = line.split(maxsplit=2)
        if len(cells) < 2 or not cells[1].isdecimal():
            raise DataError(f"{path}: '{line}' is no line such as 'n02119789 1 kit_fox': is it the published list?")
        rows.append((int(cells[1]), cells[0], cells[2].replace("_", " ") if len(cells) > 2 else ""))
    return rows


def _mat_rows(path: Path) -> list[tuple[int, str, str]]:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ConfigError(
            f"{path} is read by scipy, which is not installed: pip install 'bridle[demo]', or add {_MAP}"
        ) from error
    try:
        synsets: Any = loadmat(str(path), squeeze_me=True)["synsets"]
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in synsets]
    except Exception as error:  # scipy raises whatever a broken file leads to
        raise DataError(f"{path} is not the devkit's list of classes: {error}") from error
