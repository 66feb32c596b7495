"""UCF101 (K. Soomro et al., arXiv:1212.0402): films by class, and three published splits."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from bridle.data.protocols.base import Request
from bridle.data.protocols.listing import Listing, lines_of
from bridle.errors import DataError

_LISTS, _FILMS = "ucfTrainTestlist", "UCF-101"
_GROUP = re.compile(r".*_(g\d+)_c\d+")


def read_ucf101(request: Request, *, number: int) -> Listing:
    """One of the splits: ``UCF-101/CLASS/v_CLASS_g01_c01.avi`` and ``ucfTrainTestlist/trainlist01.txt``, ``testlist01.txt``.

    Columns: ``class``, ``split`` (train, test) and ``group``, class and group of a film. Films that were unpacked without their
    folders are found, too.

    Args:
        request: what to read.
        number: of the split, 1 to 3.

    Raises:
        DataError: a list is missing or has a line that is no film.
    """
    names = {split: f"{split}list0{number}.txt" for split in ("train", "test")}
    root = request.root(*(f"{folder}/{name}".lstrip("/") for name in names.values() for folder in ("", _LISTS)))
    films = next((folder for folder in (root / _FILMS, root.parent / _FILMS) if folder.is_dir()), root)
    listing = Listing()
    for split, name in names.items():
        path = request.file(root, name, _LISTS)
        for line in lines_of(path):
            film = PurePosixPath(line.split()[0])  # behind it a training list has the number of the class
            group = _GROUP.fullmatch(film.stem)
            if len(film.parts) != 2 or group is None:
                raise DataError(
                    f"{path}: '{line}' is no line such as 'Archery/v_Archery_g01_c01.avi': is it the published list?"
                )
            cells = {"class": film.parts[0], "split": split, "group": f"{film.parts[0]}_{group[1]}"}
            listing.add_file(str(film), _place(films, film), cells)
    return listing


def _place(films: Path, film: PurePosixPath) -> Path:
    flat = films / film.name
    return flat if flat.is_file() else films / film
